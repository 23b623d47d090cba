-- Version 1. Later versions are steps of their own; this file stays.

CREATE TABLE vms (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    state        TEXT NOT NULL,
    ending       TEXT,
    pid          INTEGER,
    parent       TEXT,               -- no foreign key: it stays when the parent is removed
    generation   INTEGER NOT NULL,   -- forks since the boot along this line
    image        TEXT NOT NULL,
    cpus         INTEGER NOT NULL,
    memory_bytes INTEGER NOT NULL,
    command      TEXT NOT NULL,      -- JSON
    env          TEXT NOT NULL,      -- JSON
    cwd          TEXT,
    user         TEXT,
    kernel       TEXT,
    created_ms   INTEGER NOT NULL,
    owner        TEXT NOT NULL,
    epoch        INTEGER NOT NULL
);

CREATE INDEX vms_by_image ON vms (image);

-- The disk of a VM, oldest layer first; the last is its own.
CREATE TABLE layers (
    vm       TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    layer    TEXT NOT NULL,          -- the id of the VM that wrote it, also after that one was removed
    PRIMARY KEY (vm, position)
);

CREATE INDEX layers_by_layer ON layers (layer);

CREATE TABLE images (
    digest     TEXT PRIMARY KEY,
    size_bytes INTEGER NOT NULL
);

CREATE TABLE events (
    seq    INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms  INTEGER NOT NULL,
    vm     TEXT NOT NULL,
    kind   TEXT NOT NULL,
    detail TEXT NOT NULL
);

PRAGMA user_version = 1;
