-- What the gateway's records say about a person: made from its record stream, and made anew from
-- there at will. `insured` is the pseudonym, times are Unix milliseconds, `reasons` a JSON list.

-- How far the stream was indexed. One row.
CREATE TABLE access_index (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    -- Grows whenever the index begins anew, so that nothing of before is added to it.
    epoch         INTEGER NOT NULL,
    -- Everything up to this record was seen.
    through       INTEGER NOT NULL,
    -- Time of the last record that was seen.
    last_at       INTEGER NOT NULL,
    -- Rows of before are still to be removed.
    clearing      INTEGER NOT NULL,
    -- The index is whole again when it has come this far.
    rebuild_until INTEGER NOT NULL
);
INSERT INTO access_index (id, epoch, through, last_at, clearing, rebuild_until)
VALUES (1, 0, 0, 0, 0, 0);

-- One row per decision, with its completion once there is one.
CREATE TABLE gateway_decisions (
    number      INTEGER PRIMARY KEY,
    at          INTEGER NOT NULL,
    -- Absent where the path named no person: then the hub's own row says whom it was about.
    insured     TEXT,
    request_id  TEXT NOT NULL,
    party       TEXT NOT NULL,
    party_name  TEXT,
    staff_job   TEXT,
    action      TEXT,
    kind        TEXT,
    document_id TEXT,
    decision    TEXT NOT NULL,
    reasons     TEXT NOT NULL,
    status      INTEGER,
    bytes_sent  INTEGER,
    outcome     TEXT
);
CREATE INDEX gateway_decisions_person ON gateway_decisions (insured, at, number);
CREATE INDEX gateway_decisions_request ON gateway_decisions (request_id);

-- Denials that were counted: one row per record and person.
CREATE TABLE gateway_denials_counted (
    number     INTEGER NOT NULL,
    insured    TEXT NOT NULL,
    from_at    INTEGER NOT NULL,
    until_at   INTEGER NOT NULL,
    party      TEXT NOT NULL,
    party_name TEXT,
    reasons    TEXT NOT NULL,
    count      INTEGER NOT NULL,
    PRIMARY KEY (number, insured)
);
CREATE INDEX gateway_denials_counted_person
ON gateway_denials_counted (insured, until_at, number);

CREATE INDEX accesses_person_at ON accesses (insurer, number, at, id);
CREATE INDEX accesses_request ON accesses (request_id);
