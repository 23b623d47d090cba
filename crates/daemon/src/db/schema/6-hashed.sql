-- Version 6: what it took to store a checkpoint.

-- What of it was read and hashed, in bytes: NULL where that is not known.
ALTER TABLE checkpoints ADD COLUMN hashed_bytes INTEGER;

PRAGMA user_version = 6;
