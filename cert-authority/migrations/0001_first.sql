-- The registration authority's tables. Times are Unix seconds, keys and hashes are raw bytes.

CREATE TABLE office (
    number         TEXT PRIMARY KEY,
    name           TEXT NOT NULL,
    service_types  TEXT NOT NULL, -- JSON list of codes, sorted
    medical        INTEGER NOT NULL CHECK (medical IN (0, 1)),
    suspended      INTEGER NOT NULL DEFAULT 0 CHECK (suspended IN (0, 1)),
    suspend_reason TEXT,
    created_at     INTEGER NOT NULL
) STRICT;

-- One-time codes. The secret is stored only as a hash; `spki_sha256` is the key that used the code.
CREATE TABLE code (
    id          TEXT PRIMARY KEY,
    secret_hash BLOB NOT NULL,
    identity    TEXT NOT NULL, -- JSON of policies::identity::Identity
    profile     TEXT NOT NULL,
    not_after_s INTEGER,
    issued_at   INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    wrong_count INTEGER NOT NULL DEFAULT 0,
    spki_sha256 BLOB,
    used_at     INTEGER
) STRICT;

-- Every serial number that was ever sent to the signer, written before it is sent.
--   intended  → sent or about to be sent, answer not known
--   issued    → certificate here
--   refused   → the signer said no: nothing was signed
--   abandoned → the answer was lost: revoked, in case something was signed
CREATE TABLE issuance (
    serial      TEXT PRIMARY KEY,
    code_id     TEXT NOT NULL REFERENCES code (id),
    identity    TEXT NOT NULL,
    party       TEXT NOT NULL,
    profile     TEXT NOT NULL,
    spki_sha256 BLOB NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('intended', 'issued', 'refused', 'abandoned')),
    intended_at INTEGER NOT NULL,
    settled_at  INTEGER,
    not_before  INTEGER,
    not_after   INTEGER,
    certificate BLOB,
    detail      TEXT,
    CHECK (state <> 'issued' OR certificate IS NOT NULL)
) STRICT;

CREATE INDEX issuance_by_party ON issuance (party, intended_at);
CREATE INDEX issuance_by_key ON issuance (spki_sha256);
CREATE INDEX issuance_pending ON issuance (state) WHERE state = 'intended';

CREATE TABLE revocation (
    serial TEXT PRIMARY KEY REFERENCES issuance (serial),
    reason TEXT NOT NULL,
    at     INTEGER NOT NULL,
    seq    INTEGER NOT NULL
) STRICT;

-- The published facts: gapless and hash-chained, written in the transaction of the rows they tell of.
CREATE TABLE change_log (
    seq  INTEGER PRIMARY KEY,
    fact TEXT NOT NULL,
    head TEXT NOT NULL
) STRICT;

CREATE TABLE fact_current (
    key  TEXT PRIMARY KEY,
    fact TEXT NOT NULL
) STRICT;
