-- Version 7: ports of VMs that can be seen from outside.

CREATE TABLE ports (
    vm        TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    port      INTEGER NOT NULL,
    token     TEXT NOT NULL,         -- what lets one in, 32 hexadecimal digits
    is_public INTEGER NOT NULL,      -- whether everybody is let in
    PRIMARY KEY (vm, port)
) WITHOUT ROWID;

PRAGMA user_version = 7;
