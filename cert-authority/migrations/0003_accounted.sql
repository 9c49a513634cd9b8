-- Whether the audit log holds the outcome of an issued certificate. It is recorded after the
-- certificate is stored: between the two the program may end. Older rows count as open: one record
-- too many is better than none.
ALTER TABLE issuance ADD COLUMN accounted INTEGER NOT NULL DEFAULT 0 CHECK (accounted IN (0, 1));
