"""The manager's tables (SQLite). Each entry of MIGRATIONS leads from one version of them to the next."""

from __future__ import annotations

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE projects (
            number INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of acceptance
            id TEXT NOT NULL UNIQUE,
            state TEXT NOT NULL,
            builder TEXT NOT NULL,
            repository TEXT NOT NULL,
            ref TEXT,
            subdir TEXT NOT NULL,
            revision TEXT,  -- the commit
            recipe TEXT NOT NULL,
            platforms TEXT NOT NULL,
            sla TEXT NOT NULL,
            warnings TEXT NOT NULL,
            forced INTEGER NOT NULL,
            result TEXT,
            error TEXT,
            created REAL NOT NULL,
            started REAL,
            ended REAL,
            leader TEXT,
            attempt INTEGER NOT NULL,
            tagging INTEGER NOT NULL,
            shared_key TEXT,  -- Project.key
            events INTEGER NOT NULL DEFAULT 0  -- how many are stored
        )""",
        "CREATE INDEX projects_by_state ON projects (state, builder, number)",
        "CREATE INDEX projects_by_state_and_age ON projects (state, number)",
        "CREATE INDEX projects_by_builder ON projects (builder, number)",
        "CREATE INDEX projects_by_key ON projects (shared_key) WHERE shared_key IS NOT NULL",
        "CREATE INDEX projects_by_leader ON projects (leader) WHERE leader IS NOT NULL",
        "CREATE INDEX projects_by_end ON projects (ended) WHERE ended IS NOT NULL",
        """CREATE TABLE keys (  -- idempotency keys
            key TEXT PRIMARY KEY,
            request TEXT NOT NULL,  -- a digest of what was asked for with it
            project TEXT NOT NULL REFERENCES projects (id) ON DELETE CASCADE
        ) WITHOUT ROWID""",
        "CREATE INDEX keys_by_project ON keys (project)",
        """CREATE TABLE attempts (
            project TEXT NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
            number INTEGER NOT NULL,
            job TEXT NOT NULL UNIQUE,
            tokens TEXT NOT NULL,
            handle TEXT,
            created REAL NOT NULL,
            closed INTEGER NOT NULL,
            logs TEXT,
            PRIMARY KEY (project, number)
        ) WITHOUT ROWID""",
        """CREATE TABLE events (
            sequence INTEGER PRIMARY KEY AUTOINCREMENT,
            project TEXT NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
            id TEXT NOT NULL,
            body TEXT NOT NULL,
            UNIQUE (project, id)
        )""",
        "CREATE INDEX events_by_project ON events (project, sequence)",
        """CREATE TABLE outbox (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            project TEXT NOT NULL,
            topic TEXT NOT NULL,
            payload TEXT NOT NULL,
            retained INTEGER NOT NULL
        )""",
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    ),
    ("ALTER TABLE attempts ADD COLUMN move TEXT",),
    (  # whether a message tells a project's outcome; of those that lie there already, each may
        "ALTER TABLE outbox ADD COLUMN terminal INTEGER NOT NULL DEFAULT 1",
    ),
    ("ALTER TABLE attempts ADD COLUMN claim TEXT",),
    (  # how many events of it are stored, and their bytes
        "ALTER TABLE attempts ADD COLUMN events INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE attempts ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0",
    ),
    (  # of the page: logged out before they ended by themselves
        "CREATE TABLE ended_sessions (number TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID",
    ),
)
VERSION = len(MIGRATIONS)
