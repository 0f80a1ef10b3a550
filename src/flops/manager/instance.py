"""One manager per data directory: a lock that ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
from typing import IO, TYPE_CHECKING, Self

from flops.errors import BadSetting

if TYPE_CHECKING:
    from pathlib import Path


class Instance:
    """Holds the lock for as long as the context lasts; BadSetting where another process has it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        path = self._directory / "lock"
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise BadSetting(
                f"the data directory {self._directory} can't be written: {error.strerror}", hint="choose another --data"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            told = " ".join(self._file.read(200).split())
            self._file.close()
            raise BadSetting(
                f"another manager uses {self._directory} ({told or 'it has not said which'})",
                hint="stop that one first, or choose another --data",
            ) from error
        self.tell("starting")
        return self

    def tell(self, address: str) -> None:
        """Where this manager is, for whoever finds the lock taken."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()}, {address}\n")
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
