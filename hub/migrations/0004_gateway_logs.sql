-- Which log of the gateway the index is made from. When the gateway comes with another one, what was
-- indexed stays, and the new log is indexed under the next id: `number` of a row is that of its
-- record, plus 2^40 for each log before.
ALTER TABLE access_index ADD COLUMN log INTEGER NOT NULL DEFAULT 1;
-- Name of the log; absent until one was indexed.
ALTER TABLE access_index ADD COLUMN origin TEXT;
-- Hash of record `through`, by which the log is known again.
ALTER TABLE access_index ADD COLUMN hash TEXT;
-- The hash does it better.
ALTER TABLE access_index DROP COLUMN last_at;

-- Why a permitted request was refused after all: a JSON list.
ALTER TABLE gateway_decisions ADD COLUMN late_reasons TEXT;
