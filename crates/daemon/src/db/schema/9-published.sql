-- Version 9: ports of the host that are ports of VMs.

CREATE TABLE published (
    vm         TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    address    TEXT NOT NULL,        -- of the host
    host_port  INTEGER NOT NULL,
    guest_port INTEGER NOT NULL,
    PRIMARY KEY (vm, address, host_port)
) WITHOUT ROWID;

PRAGMA user_version = 9;
