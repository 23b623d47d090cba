-- Version 3: VMs that sleep in the store.

-- The layer that it writes, if that is not called like the VM: it has slept.
ALTER TABLE vms ADD COLUMN layer TEXT;
-- What the store calls the VM as it sleeps; in one that runs, as it is to sleep.
ALTER TABLE vms ADD COLUMN sleep TEXT;

PRAGMA user_version = 3;
