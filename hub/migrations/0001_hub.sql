-- The hub's rows. Times are Unix seconds, days are `YYYY-MM-DD`, JSON is text; the SQL keeps to what
-- SQLite and PostgreSQL share, except for the triggers at the end.

-- Facts: written in the same transaction as the rows they tell of. No gaps in `seq`.
CREATE TABLE change_log (
    seq   INTEGER PRIMARY KEY,
    fact  TEXT NOT NULL,
    head  TEXT NOT NULL
);
CREATE TABLE fact_current (
    key   TEXT PRIMARY KEY,
    fact  TEXT NOT NULL
);

-- 様式: one row per version. A version is never changed and never removed.
CREATE TABLE documents (
    id          INTEGER PRIMARY KEY,
    insurer     TEXT NOT NULL,
    number      TEXT NOT NULL,
    kind        TEXT NOT NULL,
    version     INTEGER NOT NULL,
    author      TEXT NOT NULL,
    submitted_by TEXT NOT NULL,
    stored_at   INTEGER NOT NULL,
    created_on  TEXT,
    request_id  TEXT NOT NULL,
    content     TEXT NOT NULL,
    UNIQUE (insurer, number, kind, version)
);

-- Who looked at what: written in the transaction that reads the document.
CREATE TABLE accesses (
    id         INTEGER PRIMARY KEY,
    insurer    TEXT NOT NULL,
    number     TEXT NOT NULL,
    at         INTEGER NOT NULL,
    party      TEXT NOT NULL,
    principal  TEXT NOT NULL,
    staff_id   TEXT,
    staff_job  TEXT,
    kind       TEXT NOT NULL,
    version    INTEGER NOT NULL,
    action     TEXT NOT NULL,
    request_id TEXT NOT NULL
);
CREATE INDEX accesses_person ON accesses (insurer, number, id);

-- 担当事業所: the newest row of an office and a person is the one in force.
CREATE TABLE registrations (
    id          INTEGER PRIMARY KEY,
    office      TEXT NOT NULL,
    insurer     TEXT NOT NULL,
    number      TEXT NOT NULL,
    from_s      INTEGER NOT NULL,
    until_s     INTEGER,
    ended_s     INTEGER,
    method      TEXT NOT NULL,
    reason      TEXT NOT NULL,
    operator    TEXT NOT NULL,
    recorded_at INTEGER NOT NULL
);
CREATE INDEX registrations_pair ON registrations (office, insurer, number, id);

-- 同意.
CREATE TABLE consents (
    id               INTEGER PRIMARY KEY,
    insurer          TEXT NOT NULL,
    number           TEXT NOT NULL,
    scope            TEXT NOT NULL,
    from_s           INTEGER NOT NULL,
    until_s          INTEGER,
    collected_by     TEXT NOT NULL,
    method           TEXT NOT NULL,
    evidence         TEXT,
    recorded_by      TEXT NOT NULL,
    recorded_at      INTEGER NOT NULL,
    withdrawn_s      INTEGER,
    withdrawn_by     TEXT,
    withdrawn_reason TEXT
);
CREATE INDEX consents_person ON consents (insurer, number, id);

-- 要介護認定の進捗: one row per step.
CREATE TABLE certification_steps (
    id          INTEGER PRIMARY KEY,
    insurer     TEXT NOT NULL,
    number      TEXT NOT NULL,
    application INTEGER NOT NULL,
    stage       TEXT NOT NULL,
    on_day      TEXT NOT NULL,
    result      TEXT,
    recorded_by TEXT NOT NULL,
    recorded_at INTEGER NOT NULL
);
CREATE INDEX certification_person ON certification_steps (insurer, number, id);

-- 主治医意見書作成依頼.
CREATE TABLE opinion_requests (
    id           INTEGER PRIMARY KEY,
    insurer      TEXT NOT NULL,
    number       TEXT NOT NULL,
    office       TEXT NOT NULL,
    due          TEXT NOT NULL,
    requested_by TEXT NOT NULL,
    requested_at INTEGER NOT NULL,
    answered_at  INTEGER,
    document     INTEGER REFERENCES documents (id)
);
CREATE INDEX opinion_requests_office ON opinion_requests (office, id);
CREATE INDEX opinion_requests_person ON opinion_requests (insurer, number, office);

-- 居宅サービス計画作成依頼届出.
CREATE TABLE care_plan_requests (
    id        INTEGER PRIMARY KEY,
    insurer   TEXT NOT NULL,
    number    TEXT NOT NULL,
    office    TEXT NOT NULL,
    starts_on TEXT NOT NULL,
    address   TEXT,
    note      TEXT,
    filed_by  TEXT NOT NULL,
    filed_at  INTEGER NOT NULL,
    accepted  INTEGER
);

-- Which office makes the person's plan (※1), and from what it is known.
CREATE TABLE plans_for (
    office  TEXT NOT NULL,
    insurer TEXT NOT NULL,
    number  TEXT NOT NULL,
    source  TEXT NOT NULL,
    active  INTEGER NOT NULL,
    since   INTEGER NOT NULL,
    PRIMARY KEY (office, insurer, number)
);

-- The municipality's inbox: what came in for it, and when it was taken over.
CREATE TABLE inbox (
    id          INTEGER PRIMARY KEY,
    insurer     TEXT NOT NULL,
    number      TEXT NOT NULL,
    kind        TEXT NOT NULL,
    sender      TEXT NOT NULL,
    at          INTEGER NOT NULL,
    document    INTEGER REFERENCES documents (id),
    notice      INTEGER REFERENCES care_plan_requests (id),
    received_at INTEGER,
    received_by TEXT
);
CREATE INDEX inbox_insurer ON inbox (insurer, id);

-- Go-live of a municipality; no row or no time: it does not share.
CREATE TABLE sharing (
    insurer TEXT PRIMARY KEY,
    from_s  INTEGER
);

-- Staff of the offices. Passwords as argon2id PHC strings.
CREATE TABLE staff (
    office   TEXT NOT NULL,
    id       TEXT NOT NULL,
    name     TEXT NOT NULL,
    job      TEXT NOT NULL,
    password TEXT NOT NULL,
    locked   INTEGER NOT NULL,
    PRIMARY KEY (office, id)
);
-- Wrong passwords in a row, for known and unknown staff ids alike.
CREATE TABLE login_attempts (
    office       TEXT NOT NULL,
    staff_id     TEXT NOT NULL,
    failures     INTEGER NOT NULL,
    locked_until INTEGER NOT NULL,
    last_at      INTEGER NOT NULL,
    PRIMARY KEY (office, staff_id)
);
CREATE TABLE sessions (
    id                 TEXT PRIMARY KEY,
    office             TEXT NOT NULL,
    staff_id           TEXT NOT NULL,
    certificate_sha256 TEXT NOT NULL,
    began_at           INTEGER NOT NULL,
    refresh_until      INTEGER NOT NULL,
    ended_at           INTEGER
);
CREATE INDEX sessions_staff ON sessions (office, staff_id);
-- Refresh tokens: SHA-256 only. A used one stays until its session is over, to notice its reuse.
CREATE TABLE refresh_tokens (
    hash    TEXT PRIMARY KEY,
    session TEXT NOT NULL REFERENCES sessions (id),
    used_at INTEGER
);
CREATE INDEX refresh_tokens_session ON refresh_tokens (session);

CREATE TRIGGER documents_stay BEFORE UPDATE ON documents
BEGIN SELECT RAISE(ABORT, 'a stored version is never changed'); END;
CREATE TRIGGER documents_are_kept BEFORE DELETE ON documents
BEGIN SELECT RAISE(ABORT, 'a stored version is never removed'); END;
CREATE TRIGGER accesses_stay BEFORE UPDATE ON accesses
BEGIN SELECT RAISE(ABORT, 'an access row is never changed'); END;
CREATE TRIGGER changes_stay BEFORE UPDATE ON change_log
BEGIN SELECT RAISE(ABORT, 'a change is never changed'); END;
