-- Version 8: VMs have a network, and checkpoints remember which.

ALTER TABLE vms ADD COLUMN network TEXT;         -- JSON; nothing where there is none
ALTER TABLE checkpoints ADD COLUMN network TEXT; -- as the VM's

PRAGMA user_version = 8;
