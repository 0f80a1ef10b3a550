"""Rows and values: every SQL statement that the manager asks, over one connection. Whoever holds a `Tables` is in a transaction."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flops.service.project import Attempt, BuilderState, Project, State

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping


COLUMNS = (
    "id", "state", "builder", "repository", "ref", "subdir", "revision", "recipe", "platforms", "sla", "warnings",
    "forced", "result", "error", "created", "started", "ended", "leader", "attempt", "tagging",
)  # fmt: skip
#: Columns that change after a project was accepted.
CHANGING = (
    "state", "builder", "revision", "result", "error", "started", "ended", "leader", "attempt", "tagging", "shared_key",
)  # fmt: skip
ATTEMPT_COLUMNS = (
    "project",
    "number",
    "job",
    "tokens",
    "handle",
    "created",
    "closed",
    "logs",
    "move",
    "claim",
    "events",
    "bytes",
)


@dataclass(frozen=True, kw_only=True)
class OutboxRow:
    """A message for FLOps' broker that was not acknowledged yet."""

    number: int
    """In the order of what happened."""
    project: str
    topic: str
    payload: str
    retained: bool


def _dump(value: object) -> str | None:
    return None if value is None else json.dumps(value, separators=(",", ":"))


def project_row(project: Project) -> dict[str, Any]:
    return {
        "id": project.id,
        "state": project.state.value,
        "builder": project.builder.value,
        "repository": project.repository,
        "ref": project.ref,
        "subdir": project.subdir,
        "revision": project.commit,
        "recipe": project.recipe,
        "platforms": json.dumps(project.platforms),
        "sla": json.dumps(dict(project.sla), separators=(",", ":")),
        "warnings": json.dumps(project.warnings),
        "forced": project.force,
        "result": _dump(project.result),
        "error": _dump(project.error),
        "created": project.created,
        "started": project.started,
        "ended": project.ended,
        "leader": project.leader,
        "attempt": project.attempt,
        "tagging": project.tagging,
        "shared_key": project.key,
    }


def to_project(row: tuple[Any, ...]) -> Project:
    found = dict(zip(COLUMNS, row, strict=True))
    return Project(
        id=found["id"],
        state=State(found["state"]),
        builder=BuilderState(found["builder"]),
        repository=found["repository"],
        ref=found["ref"],
        subdir=found["subdir"],
        commit=found["revision"],
        recipe=found["recipe"],
        platforms=tuple(json.loads(found["platforms"])),
        sla=json.loads(found["sla"]),
        warnings=tuple(json.loads(found["warnings"])),
        force=bool(found["forced"]),
        result=json.loads(found["result"]) if found["result"] else None,
        error=json.loads(found["error"]) if found["error"] else None,
        created=found["created"],
        started=found["started"],
        ended=found["ended"],
        leader=found["leader"],
        attempt=found["attempt"],
        tagging=bool(found["tagging"]),
    )


def attempt_row(attempt: Attempt) -> dict[str, Any]:
    return {
        "project": attempt.project,
        "number": attempt.number,
        "job": attempt.job,
        "tokens": json.dumps(attempt.tokens),
        "handle": _dump(attempt.handle),
        "created": attempt.created,
        "closed": attempt.closed,
        "logs": attempt.logs,
        "move": _dump(attempt.move),
        "claim": _dump(attempt.claim),
        "events": attempt.events,
        "bytes": attempt.bytes,
    }


def to_attempt(row: tuple[Any, ...]) -> Attempt:
    found = dict(zip(ATTEMPT_COLUMNS, row, strict=True))
    return Attempt(
        project=found["project"],
        number=found["number"],
        job=found["job"],
        tokens=tuple(json.loads(found["tokens"])),
        handle=json.loads(found["handle"]) if found["handle"] else None,
        created=found["created"],
        closed=bool(found["closed"]),
        logs=found["logs"],
        move=json.loads(found["move"]) if found["move"] else None,
        claim=json.loads(found["claim"]) if found["claim"] else None,
        events=found["events"],
        bytes=found["bytes"],
    )


_SELECT = f"SELECT {', '.join(COLUMNS)} FROM projects"  # noqa: S608 - our own names
#: SQLite's integers end there.
_INTEGER = 2**63 - 1
#: Messages that one answer holds.
_MESSAGES = 1000
_DEPLOYED = "('deploying', 'running', 'removing')"


class Tables:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    # --- projects ---
    def insert(self, project: Project) -> None:
        row = project_row(project)
        names, marks = ", ".join(row), ", ".join(f":{name}" for name in row)
        self._connection.execute(f"INSERT INTO projects ({names}) VALUES ({marks})", row)  # noqa: S608

    def save(self, project: Project) -> None:
        row = project_row(project)
        changes = ", ".join(f"{name} = :{name}" for name in CHANGING)
        self._connection.execute(f"UPDATE projects SET {changes} WHERE id = :id", row)  # noqa: S608

    def project(self, number: str) -> Project | None:
        if not number.isascii():  # an id from outside may be anything, and SQLite takes no half surrogate pairs
            return None
        return next(iter(self._projects("WHERE id = ?", number)), None)

    def page(self, *, limit: int, offset: int, state: State | None, text: str = "") -> tuple[tuple[Project, ...], int]:
        """Newest first, and how many there are in all; `text` stands in the repository, or begins the commit or the id."""
        conditions, values = [], []
        if state:
            conditions.append("state = ?")
            values.append(state.value)
        if text:
            conditions.append("(instr(lower(repository), ?) OR instr(revision, ?) = 1 OR instr(id, ?) = 1)")
            values += [text.lower()] * 3
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        (total,) = self._connection.execute(f"SELECT count(*) FROM projects {where}", values).fetchone()  # noqa: S608
        page = f"SELECT number FROM projects {where} ORDER BY number DESC LIMIT ? OFFSET ?"  # noqa: S608
        clause = f"WHERE number IN ({page}) ORDER BY number DESC"
        found = self._projects(clause, *values, limit, min(offset, _INTEGER))
        return tuple(found), total

    def unresolved(self, *, limit: int) -> list[Project]:
        """Accepted, and neither waiting nor queued: their commits are to be asked for."""
        return self._projects(
            "WHERE state = 'accepted' AND builder = 'none' AND leader IS NULL ORDER BY number LIMIT ?", limit
        )

    def queued(self, *, limit: int) -> list[Project]:
        return self._projects("WHERE builder = 'queued' ORDER BY number LIMIT ?", limit)

    def before(self, project: Project) -> int:
        """How many have a builder, or are queued and were accepted earlier."""
        (count,) = self._connection.execute(
            f"SELECT count(*) FROM projects WHERE builder IN {_DEPLOYED} OR (builder = 'queued' "  # noqa: S608
            "AND number < (SELECT number FROM projects WHERE id = ?))",
            (project.id,),
        ).fetchone()
        return int(count)

    def deployed(self) -> list[Project]:
        """Those of whose builders something may exist."""
        return self._projects(f"WHERE builder IN {_DEPLOYED} ORDER BY number")

    def followers(self, leader: str) -> list[Project]:
        return self._projects("WHERE leader = ? ORDER BY number", leader)

    def leader(self, project: Project) -> Project | None:
        """The one that works, or waits to work, for the same images; while something of its builder is left, too."""
        if project.key is None:
            return None
        found = self._projects(
            "WHERE shared_key = ? AND id != ? AND leader IS NULL "
            "AND builder IN ('queued', 'deploying', 'running', 'removing') ORDER BY number LIMIT 1",
            project.key,
            project.id,
        )
        return found[0] if found else None

    def stranded(self) -> list[Project]:
        """Waiting for a project that will not come back to them."""
        return self._projects(
            "AS waiting WHERE leader IS NOT NULL AND NOT EXISTS (SELECT 1 FROM projects AS other "
            "WHERE other.id = waiting.leader AND other.builder IN ('queued', 'deploying', 'running', 'removing')) "
            "ORDER BY number"
        )

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Projects by state and by builder."""
        states = {state.value: 0 for state in State}
        builders = {state.value: 0 for state in BuilderState}
        for state, builder, count in self._connection.execute(
            "SELECT state, builder, count(*) FROM projects GROUP BY state, builder"
        ):
            states[state] += count
            builders[builder] += count
        return states, builders

    def unfinished(self) -> int:
        (count,) = self._connection.execute(
            "SELECT count(*) FROM projects WHERE state IN ('accepted', 'building')"
        ).fetchone()
        return int(count)

    def forget(self, *, before: float, beyond: int, limit: int) -> int:
        """Delete ended projects of which nothing exists: those ended before, and the oldest beyond a number; how many."""
        (total,) = self._connection.execute("SELECT count(*) FROM projects WHERE ended IS NOT NULL").fetchone()
        gone = f"ended IS NOT NULL AND builder NOT IN {_DEPLOYED}"
        found = self._connection.execute(
            f"DELETE FROM projects WHERE id IN (SELECT id FROM projects WHERE {gone} AND ended < ? "  # noqa: S608
            f"UNION SELECT id FROM (SELECT id FROM projects WHERE {gone} ORDER BY ended LIMIT ?) LIMIT ?)",
            (before, max(0, total - beyond), limit),
        )
        return found.rowcount

    # --- idempotency keys ---
    def keyed(self, key: str) -> tuple[str, str] | None:
        """The digest of the request and the project that a key stands for."""
        row: tuple[str, str] | None = self._connection.execute(
            "SELECT request, project FROM keys WHERE key = ?", (key,)
        ).fetchone()
        return row

    def add_key(self, key: str, request: str, project: str) -> None:
        self._connection.execute("INSERT INTO keys (key, request, project) VALUES (?, ?, ?)", (key, request, project))

    # --- attempts ---
    def add_attempt(self, attempt: Attempt) -> None:
        names, marks = ", ".join(ATTEMPT_COLUMNS), ", ".join(f":{name}" for name in ATTEMPT_COLUMNS)
        self._connection.execute(f"INSERT INTO attempts ({names}) VALUES ({marks})", attempt_row(attempt))  # noqa: S608

    def save_attempt(self, attempt: Attempt) -> None:
        self._connection.execute(
            "UPDATE attempts SET tokens = :tokens, handle = :handle, closed = :closed, logs = :logs, move = :move, "
            "claim = :claim WHERE project = :project AND number = :number",
            attempt_row(attempt),
        )

    def attempts(self, project: str) -> list[Attempt]:
        return self._attempts("WHERE project = ? ORDER BY number", project)

    def attempt(self, project: str, number: int) -> Attempt | None:
        if not project.isascii() or not 0 < number < _INTEGER:
            return None
        return next(iter(self._attempts("WHERE project = ? AND number = ?", project, number)), None)

    def jobs(self) -> set[str]:
        """Of every builder that may exist."""
        rows = self._connection.execute(
            "SELECT job FROM projects JOIN attempts ON attempts.project = projects.id "  # noqa: S608
            f"AND attempts.number = projects.attempt WHERE builder IN {_DEPLOYED}"
        )
        return {job for (job,) in rows}

    # --- events ---
    def add_event(self, project: str, event: Mapping[str, Any]) -> int | None:
        """Store an event; its sequence, or None where one with its id is stored already."""
        body = json.dumps(event, separators=(",", ":"))
        found = self._connection.execute(
            "INSERT OR IGNORE INTO events (project, id, body) VALUES (?, ?, ?)", (project, event["id"], body)
        )
        if not found.rowcount:
            return None
        self._connection.execute("UPDATE projects SET events = events + 1 WHERE id = ?", (project,))
        self._connection.execute(
            "UPDATE attempts SET events = events + 1, bytes = bytes + ? WHERE project = ? AND number = ?",
            (len(body), project, event.get("attempt")),
        )
        return found.lastrowid

    def has_events(self, project: str, ids: Iterable[str]) -> bool:
        """Whether all of these are stored."""
        return all(
            self._connection.execute("SELECT 1 FROM events WHERE project = ? AND id = ?", (project, one)).fetchone()
            for one in ids
        )

    def events_beside(self, project: str) -> int:
        """How many are stored that are of no attempt."""
        row = self._connection.execute(
            "SELECT events - (SELECT coalesce(sum(events), 0) FROM attempts WHERE project = projects.id) "
            "FROM projects WHERE id = ?",
            (project,),
        ).fetchone()
        return int(row[0]) if row else 0

    def events(self, project: str, *, after: int, limit: int) -> list[dict[str, Any]]:
        rows = self._connection.execute(
            "SELECT sequence, body FROM events WHERE project = ? AND sequence > ? ORDER BY sequence LIMIT ?",
            (project, min(after, _INTEGER), limit),
        )
        return [{**json.loads(body), "sequence": sequence} for sequence, body in rows]

    def last_event(self, project: str) -> dict[str, Any] | None:
        row = self._connection.execute(
            "SELECT sequence, body FROM events WHERE project = ? ORDER BY sequence DESC LIMIT 1", (project,)
        ).fetchone()
        return {**json.loads(row[1]), "sequence": row[0]} if row else None

    def messages(self, project: str, *, code: str) -> list[dict[str, Any]]:
        """The newest events with this code, in order."""
        rows = self._connection.execute(
            "SELECT body FROM events WHERE project = ? AND json_extract(body, '$.code') = ? ORDER BY sequence DESC LIMIT ?",
            (project, code, _MESSAGES),
        )
        return [json.loads(body) for (body,) in rows][::-1]

    # --- outbox ---
    def put_out(self, project: str, topic: str, payload: str, *, retained: bool, terminal: bool = False) -> None:
        """`terminal`: it tells the project's outcome."""
        self._connection.execute(
            "INSERT INTO outbox (project, topic, payload, retained, terminal) VALUES (?, ?, ?, ?, ?)",
            (project, topic, payload, retained, terminal),
        )

    def outbox(self, *, limit: int) -> list[OutboxRow]:
        rows = self._connection.execute(
            "SELECT number, project, topic, payload, retained FROM outbox ORDER BY number LIMIT ?", (limit,)
        )
        return [
            OutboxRow(number=number, project=project, topic=topic, payload=payload, retained=bool(retained))
            for number, project, topic, payload, retained in rows
        ]

    def outbox_done(self, number: int) -> None:
        self._connection.execute("DELETE FROM outbox WHERE number = ?", (number,))

    def outbox_count(self) -> int:
        (count,) = self._connection.execute("SELECT count(*) FROM outbox").fetchone()
        return int(count)

    def trim_outbox(self, *, limit: int) -> int:
        """Drop what is beyond so many messages, whole projects at a time, the oldest first; how many. An outcome of a
        project that is remembered stays, so more than `limit` may be left.
        """
        excess = self.outbox_count() - limit
        if excess <= 0:
            return 0
        on_the_way = self._connection.execute(
            "DELETE FROM outbox WHERE NOT terminal AND project IN (WITH sizes AS (SELECT project, min(number) AS first, "
            "count(*) AS size FROM outbox WHERE NOT terminal GROUP BY project) SELECT project FROM "
            "(SELECT project, sum(size) OVER (ORDER BY first) - size AS older FROM sizes) WHERE older < ?)",
            (excess,),
        ).rowcount
        forgotten = self._connection.execute(
            "DELETE FROM outbox WHERE number IN (SELECT number FROM outbox WHERE NOT EXISTS "
            "(SELECT 1 FROM projects WHERE id = outbox.project) ORDER BY number LIMIT ?)",
            (max(0, excess - on_the_way),),
        ).rowcount
        return on_the_way + forgotten

    # --- meta ---
    def meta(self, key: str) -> str | None:
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else None

    def set_meta(self, key: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))

    # --- sessions of the page ---
    def end_session(self, number: str, until: float, *, now: float) -> None:
        """Remember it as long as its cookie would be good."""
        self._connection.execute("DELETE FROM ended_sessions WHERE until <= ?", (now,))
        self._connection.execute("INSERT OR REPLACE INTO ended_sessions (number, until) VALUES (?, ?)", (number, until))

    def ended_sessions(self) -> dict[str, float]:
        return dict(self._connection.execute("SELECT number, until FROM ended_sessions"))

    def _projects(self, clause: str, *values: object) -> list[Project]:
        return [to_project(row) for row in self._connection.execute(f"{_SELECT} {clause}", values)]

    def _attempts(self, clause: str, *values: object) -> list[Attempt]:
        columns = ", ".join(ATTEMPT_COLUMNS)
        rows = self._connection.execute(f"SELECT {columns} FROM attempts {clause}", values)  # noqa: S608
        return [to_attempt(row) for row in rows]
