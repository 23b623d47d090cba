-- Version 2: checkpoints, and what their seeds need.

CREATE TABLE checkpoints (
    id            TEXT PRIMARY KEY,   -- its name in the store
    name          TEXT NOT NULL UNIQUE,
    vm            TEXT NOT NULL,      -- what it is of; no foreign key: it stays when the VM is removed
    vm_name       TEXT NOT NULL,
    state         TEXT NOT NULL,
    problem       TEXT,
    generation    INTEGER NOT NULL,   -- forks since the boot along this line
    image         TEXT NOT NULL,
    cpus          INTEGER NOT NULL,
    memory_bytes  INTEGER NOT NULL,
    command       TEXT NOT NULL,      -- JSON
    env           TEXT NOT NULL,      -- JSON
    cwd           TEXT,
    user          TEXT,
    kernel        TEXT,
    logical_bytes INTEGER,            -- as the guest sees it, once it is stored
    stored_bytes  INTEGER,            -- what it added to the store
    created_ms    INTEGER NOT NULL,
    owner         TEXT NOT NULL,
    epoch         INTEGER NOT NULL
);

CREATE INDEX checkpoints_by_image ON checkpoints (image);

-- The layers that a checkpoint's seed reads, oldest first. There are none once the seed is gone.
CREATE TABLE seed_layers (
    checkpoint TEXT NOT NULL REFERENCES checkpoints (id) ON DELETE CASCADE,
    position   INTEGER NOT NULL,
    layer      TEXT NOT NULL,         -- the id of the VM that wrote it, also after that one was removed
    PRIMARY KEY (checkpoint, position)
);

CREATE INDEX seed_layers_by_layer ON seed_layers (layer);

PRAGMA user_version = 2;
