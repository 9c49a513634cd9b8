-- A serial that is not in our records can be revoked too: one that a taken-over RA had signed, for
-- example, of which a restored database knows nothing.
CREATE TABLE revocation_of_any (
    serial TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    at     INTEGER NOT NULL,
    seq    INTEGER NOT NULL
) STRICT;

INSERT INTO revocation_of_any (serial, reason, at, seq) SELECT serial, reason, at, seq FROM revocation;

DROP TABLE revocation;

ALTER TABLE revocation_of_any RENAME TO revocation;
