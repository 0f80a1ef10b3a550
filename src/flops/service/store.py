"""The manager's database: one file of SQLite, and the truth about every project.

One connection writes, in the order in which writers come; others read beside it (WAL). What `write` has left is on the disk
(`synchronous = FULL`), so whatever is told after it holds after a crash.
"""

from __future__ import annotations

import contextlib
import errno
import queue
import secrets
import sqlite3
import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from flops.errors import DiskFull, FlopsError, StoreError
from flops.service.schema import MIGRATIONS, VERSION
from flops.service.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flops.service.tables import OutboxRow


class WriterQueue:
    """A lock that is passed on in order; `threading.Lock` lets whoever is quick overtake. As a context: one turn.

    Who is interrupted while waiting still gets its turn, for `left` alone: whoever went before may count on it.
    """

    def __init__(self, left: Callable[[], None] = lambda: None) -> None:
        self._left = left
        self._guard = threading.Lock()
        self._queue: deque[threading.Event] = deque()
        self._taken = False

    @property
    def waiting(self) -> int:
        """How many want a turn."""
        return len(self._queue)

    def __enter__(self) -> Self:
        with self._guard:
            if not self._taken:
                self._taken = True
                return self
            turn = threading.Event()
            self._queue.append(turn)
        try:
            turn.wait()
        except BaseException:
            turn.wait()
            try:
                self._left()
            finally:
                self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._queue:
                self._queue.popleft().set()
            else:
                self._taken = False


@dataclass(kw_only=True)
class CommitBatch:
    """Entries of writers that waited for each other: one transaction, one wait for the disk."""

    size: int = 0
    after: list[Callable[[], None]] = field(default_factory=list)
    """To be called when all is on the disk, in order."""
    error: FlopsError | None = None
    """Why nothing of it is."""
    done: threading.Event = field(default_factory=threading.Event)

    def end(self, error: FlopsError | None = None) -> None:
        self.error = error
        self.done.set()


#: For another process that has the file open, such as a backup.
BUSY_SECONDS = 10.0
READERS = 8
#: Writers that are committed together, at most.
TOGETHER = 16


class Store:
    """Thread-safe. `open` before use; StoreError and DiskFull for whatever the file or its disk do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._turns = WriterQueue(self._finish)
        self._group: CommitBatch | None = None  # of the transaction that is open
        self._writer: sqlite3.Connection | None = None
        self._readers: queue.LifoQueue[sqlite3.Connection | None] = queue.LifoQueue()
        self._after: list[Callable[[], None]] = []

    def open(self) -> Self:
        """Make or open the file, bring its tables up to date."""
        with self._turns, _translated(self.path):
            self._finish()
            if self._writer is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.touch(mode=0o600, exist_ok=True)  # it holds URLs and names of other people
                self._writer = self._connect()
                self._migrate(self._writer)
                for _ in range(READERS):
                    self._readers.put(None)
        return self

    def close(self) -> None:
        with self._turns:
            self._finish()
            while self._writer is not None:
                try:
                    reader = self._readers.get_nowait()
                except queue.Empty:
                    break
                if reader is not None:
                    reader.close()
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def write(self) -> Iterator[Tables]:
        """One transaction: on the disk at the end, or not at all where something is raised. Not within itself.

        Writers that wait for each other share the wait for the disk: each is undone alone, and all are committed together.
        """
        with self._turns:
            connection = self._writer
            if connection is None:
                raise StoreError("the database is closed", hint="the manager is ending; ask again in a moment")
            group = self._begin(connection)
            try:
                with _translated(self.path):
                    connection.execute("SAVEPOINT entry")
                    yield Tables(connection)
                    connection.execute("RELEASE entry")
            except BaseException as error:
                self._undo(connection, group, error)
                raise
            group.after += self._after
            self._after = []
            self._commit(connection, group)
        group.done.wait()
        if group.error is not None:
            raise type(group.error)(group.error.message, hint=group.error.hint) from group.error

    def afterwards(self, call: Callable[[], None]) -> None:
        """Within `write`: call this once it is committed, in the order of commits. It must not block and must not raise."""
        self._after.append(call)

    @contextmanager
    def read(self, *, once: bool = False) -> Iterator[Tables]:
        """A view that doesn't change meanwhile and waits for nobody; `once`: for a single question, which needs no transaction."""
        try:
            kept = self._readers.get(timeout=BUSY_SECONDS if self._writer is not None else 0)
        except queue.Empty:
            raise StoreError("the database is busy or closed", hint="ask again in a moment") from None
        try:
            with _translated(self.path):
                kept = kept or self._connect()
                if not once:
                    kept.execute("BEGIN")
                yield Tables(kept)
        finally:
            if kept is not None and kept.in_transaction:
                kept.execute("ROLLBACK")
            if kept is not None and self._writer is None:
                kept.close()
            else:
                self._readers.put(kept)

    # --- for the mirror ---
    def outbox_next(self, limit: int) -> list[OutboxRow]:
        """The oldest messages that nobody has acknowledged, in order."""
        with self.read() as tables:
            return tables.outbox(limit=limit)

    def outbox_done(self, number: int) -> None:
        """This message was acknowledged."""
        with self.write() as tables:
            tables.outbox_done(number)

    def outbox_count(self) -> int:
        with self.read() as tables:
            return tables.outbox_count()

    def outbox_trim(self, limit: int) -> int:
        """Drop the oldest messages beyond so many (`Tables.trim_outbox`); how many were dropped."""
        if self.outbox_count() <= limit:
            return 0
        with self.write() as tables:
            return tables.trim_outbox(limit=limit)

    def prefix(self) -> str:
        """Six hexadecimal digits, made once per database: every builder of this manager is named with them."""
        with self.write() as tables:
            found = tables.meta("prefix")
            if found is None:
                found = secrets.token_hex(3)
                tables.set_meta("prefix", found)
            return found

    def _begin(self, connection: sqlite3.Connection) -> CommitBatch:
        """The open transaction that writers before this one left to it, or a new one."""
        if self._group is None:
            with _translated(self.path):
                connection.execute("BEGIN IMMEDIATE")
            self._group = CommitBatch()
        self._group.size += 1
        return self._group

    def _undo(self, connection: sqlite3.Connection, group: CommitBatch, error: BaseException) -> None:
        """Take one writer's changes back; what others have left is committed all the same, if SQLite still has it."""
        self._after = []
        try:
            with _translated(self.path):
                if not connection.in_transaction:  # a full disk may end the whole of it
                    raise StoreError("the transaction was ended by SQLite") from error
                connection.execute("ROLLBACK TO entry")
                connection.execute("RELEASE entry")
        except FlopsError as lost:
            self._abandon(connection, error if isinstance(error, FlopsError) else lost)
            return
        with contextlib.suppress(FlopsError):  # who is concerned is told by the group
            self._commit(connection, group)

    def _commit(self, connection: sqlite3.Connection, group: CommitBatch) -> None:
        """Unless another one waits for its turn already, who will do it."""
        if not self._turns.waiting or group.size >= TOGETHER:
            self._flush(connection, group)

    def _finish(self) -> None:
        """Commit what was left to whoever came next, where that is no writer."""
        if self._writer is not None and self._group is not None:
            self._flush(self._writer, self._group)

    def _flush(self, connection: sqlite3.Connection, group: CommitBatch) -> None:
        try:
            with _translated(self.path):
                connection.execute("COMMIT")
        except FlopsError as error:
            self._abandon(connection, error)
            return
        self._group = None
        for call in group.after:
            call()
        group.end()

    def _abandon(self, connection: sqlite3.Connection, error: FlopsError) -> None:
        group, self._group = self._group, None
        with contextlib.suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        if group is not None:
            group.end(error)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "cache_size = -2048"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise StoreError(
                f"{self.path} was written by a newer flops (version {version} of its tables; this one knows {VERSION})",
                hint="use that flops, or the backup from before the update",
            )
        for number in range(version, VERSION):
            connection.execute("BEGIN IMMEDIATE")
            for statement in MIGRATIONS[number]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute("COMMIT")


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.DatabaseError, OSError) as error:
        raise _failure(path, error) from error


def _failure(path: Path, error: sqlite3.DatabaseError | OSError) -> FlopsError:
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return DiskFull(f"the disk of {path} is full", hint="free some space; the manager goes on by itself")
    words = error.strerror if isinstance(error, OSError) else str(error)
    return StoreError(f"the database {path} can't be used: {words}", hint="check the disk, or restore a backup")
