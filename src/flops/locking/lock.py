"""Locks of plain requirements for one platform, kept while they are fresh; and experiments, which are not kept."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from packaging.requirements import InvalidRequirement, Requirement

from flops.errors import (
    FlopsError,
    IndexUnreachable,
    LockTimeout,
    NoWheel,
    RequirementForbidden,
    RequirementSyntax,
    ToolFailed,
    Unresolvable,
)
from flops.http import without_credentials
from flops.locking.compiler import Compiler, name_of
from flops.locking.index import Index, check_url
from flops.locking.pylock import Lock, LockedWheel, LockTarget
from flops.store.document_store import DocumentStore
from flops.store.shared import LOCK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from flops.platforms import Platform

__all__ = ["Lock", "LockedWheel", "Locker"]

#: Seconds that one run of uv may take, downloads of metadata included.
DEADLINE = 120.0
#: How often uv asks an index again that does not answer; three times take 10 s.
RETRIES = 3
#: Seconds within which an index of CPU builds has to answer, and for which its silence and its answer are remembered.
TORCH_PATIENCE, TORCH_SILENT, TORCH_ANSWERS = 6.0, 600, 24 * 3600


class Locker:
    """Locks requirements against one index. Safe to share between threads."""

    def __init__(
        self,
        cache_dir: Path,
        *,
        index_url: str | None = None,
        torch_index: str | None = None,
        ca_bundle: Path | None = None,
        upgrade: bool = False,
        seconds: float = DEADLINE,
        retries: int = RETRIES,
        store: DocumentStore | None = None,
    ) -> None:
        self._store = store or DocumentStore(cache_dir / "locks", kind=LOCK)
        self._upgrade = upgrade
        self._made: set[str] = set()
        self._uv = Compiler(
            cache=cache_dir / "uv",
            seconds=seconds,
            retries=retries,
            index_url=check_url(index_url) if index_url else None,
            torch_index=check_url(torch_index) if torch_index else None,
            ca_bundle=ca_bundle,
        )

    def for_cpu(self, names: Iterable[str]) -> Locker:
        """A locker that takes CPU builds of PyTorch's packages (`names`, in PEP 503's form), and else works as this one.

        CPU builds come from FLOPS_TORCH_INDEX, which is asked for nothing else, or from the index that uv knows.
        """
        other = copy.copy(self)
        other._uv = replace(self._uv, torch=frozenset(names))  # noqa: SLF001 - a copy of this locker
        return other

    def cpu_refusal(self, target: LockTarget) -> str:
        """Why CPU builds of PyTorch are not available; "" if they are. Takes some seconds, and is remembered."""
        request = {"torch for cpu": target.uv_platform}
        known = self.recall(request)
        until, reason = (known.get("until"), known.get("reason")) if isinstance(known, dict) else (None, None)
        if isinstance(until, int | float) and isinstance(reason, str) and time.time() < until:
            return reason
        asking = replace(
            self._uv, torch=frozenset(["torch"]), patience=TORCH_PATIENCE, seconds=2 * TORCH_PATIENCE, retries=0
        )
        reason = ""
        try:
            asking.compile(["torch"], target, options=["--no-deps"])
        except (Unresolvable, NoWheel):
            reason = "it has no PyTorch for this platform"
        except LockTimeout:
            reason = "it does not answer"
        except (IndexUnreachable, ToolFailed) as error:
            reason = error.message.rpartition("cause: ")[2]
        until = time.time() + (TORCH_SILENT if reason else TORCH_ANSWERS)
        self.remember(request, {"until": until, "reason": reason}, shared=not reason)
        return reason

    def lock(
        self,
        requirements: Sequence[str],
        *,
        platform: Platform,
        python: str,
        glibc: tuple[int, int],
        prefer: Lock | None = None,
        dependencies: bool = True,
    ) -> Lock:
        """Lock PEP 508 requirements for a platform, a full Python version and a glibc (major, minor); wheels only.

        `prefer`: a lock whose versions are kept where they fit. Without `dependencies` nothing else is locked.
        A stored lock is used while it is fresh.
        Unresolvable (with uv's explanation), IndexUnreachable, LockTimeout, RequirementForbidden.
        """
        target = LockTarget(platform=platform, python=python, glibc=glibc)
        lines = _plain(requirements)
        request = _request(lines, target, prefer, dependencies)
        stored = self._stored(request)
        if stored is not None:
            return stored
        options = [*(["--refresh"] if self._upgrade else []), *([] if dependencies else ["--no-deps"])]
        lock = self._uv.compile(lines, target, prefer=prefer, options=options)
        self.remember(request, lock.to_json())
        return lock

    def stored(
        self,
        requirements: Sequence[str],
        *,
        platform: Platform,
        python: str,
        glibc: tuple[int, int],
        dependencies: bool = True,
    ) -> Lock | None:
        """The stored lock that `lock` would return; None if `lock` would have to run uv."""
        target = LockTarget(platform=platform, python=python, glibc=glibc)
        return self._stored(_request(_plain(requirements), target, None, dependencies))

    def recall(self, request: Mapping[str, Any]) -> Any:
        """What `remember` kept for this request on this index; None if it is absent or old, or has to be made again."""
        key = self._key(request)
        return self._store.get(key) if not self._upgrade or json.dumps(key) in self._made else None

    def remember(self, request: Mapping[str, Any], content: Any, *, shared: bool = True) -> None:
        """Keep JSON content as long as locks are kept, for other builders too if `shared`."""
        key = self._key(request)
        self._store.put(key, content, shared=shared)
        self._made.add(json.dumps(key))

    def probe(self, requirement: str, *, target: LockTarget, lowest: bool = False, alone: bool = True) -> str | None:
        """The version that one requirement gets on the target; "" if its marker excludes the target, None if it has no wheel.

        `lowest` takes the oldest version instead of the newest; `alone` leaves out its dependencies.
        """
        lines = _plain([requirement])
        found = self.experiment(lines, target=target, lowest=lowest, alone=alone)
        return found.get(name_of(lines[0]), "") if isinstance(found, dict) else None

    def experiment(
        self, requirements: Sequence[str], *, target: LockTarget, lowest: bool = False, alone: bool = False
    ) -> dict[str, str] | Unresolvable | NoWheel:
        """The versions that these requirements get together, or the error; nothing is stored.

        Answers of the index within RECENT are used again, so an experiment costs only uv's time.
        IndexUnreachable, LockTimeout.
        """
        options = ["--resolution", "lowest-direct"] if lowest else []
        options += ["--no-deps"] if alone else []
        try:
            return self._uv.compile(_plain(requirements), target, options=options, recent=True).versions
        except (Unresolvable, NoWheel) as error:
            return error

    def index(self) -> Index:
        """A client of this locker's index."""
        return self._uv.indexes()[-1]

    def indexes(self) -> list[Index]:
        """Clients of all indexes; see `Compiler.indexes`."""
        return self._uv.indexes()

    def _stored(self, request: Mapping[str, Any]) -> Lock | None:
        try:
            content = self.recall(request)
            return Lock.from_json(content) if content is not None else None
        except (KeyError, TypeError, FlopsError):  # written by another version of this program
            return None

    def _key(self, request: Mapping[str, Any]) -> dict[str, Any]:
        uv = self._uv
        key = {**request, "indexes": [without_credentials(uv.index_url or "")]}
        if uv.torch is not None:
            key |= {"torch": sorted(uv.torch), "torch index": without_credentials(uv.torch_index or "")}
        return key


def _request(lines: Sequence[str], target: LockTarget, prefer: Lock | None, dependencies: bool) -> dict[str, Any]:
    """The key of a stored lock."""
    return {
        "requirements": sorted(lines),
        "target": [target.platform.value, target.python, target.uv_platform],
        "prefer": prefer.digest if prefer else None,
        "dependencies": dependencies,
    }


def _plain(requirements: Sequence[str]) -> list[str]:
    """Each requirement in its normal form; refuses any that uv could read as more than a package."""
    lines = []
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise RequirementSyntax(f"{text!r:.200} is not a requirement", hint="write NAME==VERSION") from error
        line = str(requirement)
        if requirement.url or "$" in line or not line.isprintable():
            raise RequirementForbidden(f"{requirement.name}: URLs, variables and control characters can't be locked")
        lines.append(line)
    return lines
