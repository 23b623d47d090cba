-- Version 5: a VM that sleeps keeps its layers.

-- What the store has of it as it slept, once it has run since: nobody goes on from that again. Until now this was called like
-- its layer.
ALTER TABLE vms ADD COLUMN woken TEXT;
UPDATE vms SET woken = layer WHERE layer IS NOT NULL AND (sleep IS NULL OR sleep <> layer);

PRAGMA user_version = 5;
