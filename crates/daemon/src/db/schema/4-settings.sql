-- Version 4: settings, and after how long a VM that nobody uses hibernates by itself.

-- Those that are not what they are when nobody sets them.
CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- In milliseconds: never when 0, as the settings say when NULL.
ALTER TABLE vms ADD COLUMN idle_timeout_ms INTEGER;

PRAGMA user_version = 4;
