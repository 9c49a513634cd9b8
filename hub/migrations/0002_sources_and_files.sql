-- Which office makes the person's plan (※1): one row a source, so that the end of one source leaves
-- the others.
CREATE TABLE plans_for_by_source (
    office  TEXT NOT NULL,
    insurer TEXT NOT NULL,
    number  TEXT NOT NULL,
    source  TEXT NOT NULL,
    active  INTEGER NOT NULL,
    since   INTEGER NOT NULL,
    PRIMARY KEY (office, insurer, number, source)
);
INSERT INTO plans_for_by_source (office, insurer, number, source, active, since)
SELECT office, insurer, number, source, active, since FROM plans_for;
DROP TABLE plans_for;
ALTER TABLE plans_for_by_source RENAME TO plans_for;
CREATE INDEX plans_for_person ON plans_for (insurer, number, source);
CREATE INDEX care_plan_requests_person ON care_plan_requests (insurer, number, id);

-- ケアプラン files that were stored: what the same file is answered with when it comes again.
CREATE TABLE care_plan_files (
    sender    TEXT NOT NULL,
    name      TEXT NOT NULL,
    sha256    TEXT NOT NULL,
    answer    TEXT NOT NULL,
    stored_at INTEGER NOT NULL,
    PRIMARY KEY (sender, name)
);

-- The cleanup of old attempts deletes by this column.
CREATE INDEX login_attempts_last_at ON login_attempts (last_at);
