"""Which modules a wheel provides and what it requires, read from its zip directory before the wheel itself is fetched.

One or two range requests fetch the end of a wheel, and the result is remembered by the wheel's hash. If the server knows no
ranges, the whole wheel is fetched, which a build needs anyway.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from flops.errors import WheelUnsafe
from flops.formats.requirement import ENTRIES, TEXT_LIMIT
from flops.store.document_store import DocumentStore
from flops.store.shared import PROVIDES
from flops.wheels.ranges import ByteSource, NoRanges, Ranges, content, local
from flops.wheels.zip_directory import ZipError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from email.message import Message
    from pathlib import Path

    import httpx

    from flops.locking.lock import LockedWheel
    from flops.store.shared import SharedCache
    from flops.wheels.wheel_cache import WheelCache
    from flops.wheels.zip_directory import ZipMember

#: Bytes of a METADATA without its body; old ones hold their description there.
HEADERS_LIMIT = 1024 * 1024
#: Raised whenever the same wheel would give another result.
FORMAT = 1
#: Longest root in a package without `__init__` (PEP 420), in names.
LEVELS = 3
#: The file with which setuptools provides distutils, which Python no longer has.
_DISTUTILS = "distutils-precedence.pth"
#: Wheels that are read at the same time.
WORKERS = 8


def modules(names: Iterable[str]) -> frozenset[str]:
    """The importable roots among a wheel's members: `numpy`, `six`, and `google.protobuf` where `google` is shared.

    A root is the topmost package with an `__init__`; modules below it are not listed.
    """
    members = frozenset(names)
    files = [parts for name in members if (parts := _installed(name))]
    packages = {parts[:-1] for parts in files if _stem(parts[-1]) == "__init__"}
    roots = {"distutils"} if _DISTUTILS in members else set()
    for parts in files:
        stem = _stem(parts[-1])
        if not stem or not all(part.isidentifier() for part in (*parts[:-1], stem)):
            continue
        regular = next((parts[:end] for end in range(1, len(parts)) if parts[:end] in packages), None)
        roots.add(".".join((regular or (*parts[:-1], stem))[:LEVELS]))
    return frozenset(roots)


def provided(module: str, roots: Iterable[str]) -> bool:
    """Whether a dotted module is one of these roots, or below or above one."""
    return any(f"{module}.".startswith(f"{root}.") or root.startswith(f"{module}.") for root in roots)


class Provides:
    """Reads wheels, and remembers what they provide under `root`. Safe between threads and processes."""

    def __init__(
        self,
        root: Path,
        wheels: WheelCache,
        *,
        ca_bundle: Path | None = None,
        transport: httpx.BaseTransport | None = None,
        workers: int = WORKERS,
        shared: SharedCache | None = None,
    ) -> None:
        self._documents = DocumentStore(root, kind=PROVIDES, lifetime=None, shared=shared)
        self._wheels = wheels
        self._ca_bundle = ca_bundle
        self._transport = transport
        self._workers = workers

    def modules(self, wheels: Iterable[LockedWheel]) -> dict[str, frozenset[str]]:
        """The importable roots of each wheel, by its sha256. IndexUnreachable, WheelUnsafe."""
        found = self._all("modules", wheels, _read_modules)
        return {sha256: frozenset(names) for sha256, names in found.items()}

    def requires(self, wheels: Iterable[LockedWheel]) -> dict[str, tuple[str, ...]]:
        """The `Requires-Dist` lines of each wheel, by its sha256. IndexUnreachable, WheelUnsafe."""
        return {sha256: tuple(lines) for sha256, lines in self._all("requires", wheels, _read_requires).items()}

    def pythons(self, wheels: Iterable[LockedWheel]) -> dict[str, str]:
        """`Requires-Python` by sha256, of those wheels for which this machine knows it; makes no request.

        It is known if the metadata was at the end that was read for the modules, or if the whole wheel is here.
        """
        found: dict[str, str] = {}
        for wheel in wheels:
            known = self._kept("python", wheel)
            if known is None and self._wheels.has(wheel):
                with contextlib.suppress(OSError):
                    self._remember_python(wheel, local(self._wheels.path(wheel)))
                known = self._kept("python", wheel)
            if known and known[0]:
                found[wheel.sha256] = known[0]
        return found

    def _all(
        self, kind: str, wheels: Iterable[LockedWheel], read: Callable[[ByteSource], list[str]]
    ) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        missing: list[LockedWheel] = []
        for sha256, wheel in {wheel.sha256: wheel for wheel in wheels}.items():
            known = self._kept(kind, wheel)
            if known is None:
                missing.append(wheel)
            else:
                found[sha256] = known
        with ThreadPoolExecutor(self._workers) as pool:
            shared = list(pool.map(lambda wheel: _names(self._documents.shared([FORMAT, kind, wheel.sha256])), missing))
        found |= {wheel.sha256: names for wheel, names in zip(missing, shared, strict=True) if names is not None}
        missing = [wheel for wheel in missing if wheel.sha256 not in found]
        if missing:
            with Ranges(self._ca_bundle, self._transport) as client, ThreadPoolExecutor(self._workers) as pool:
                answers = pool.map(lambda wheel: self._read(wheel, client, read), missing)
                for wheel, names in zip(missing, answers, strict=True):
                    found[wheel.sha256] = names
                    self._keep(kind, wheel, names)
        return found

    def _read(self, wheel: LockedWheel, client: Ranges, read: Callable[[ByteSource], list[str]]) -> list[str]:
        try:
            if not self._wheels.has(wheel):
                with contextlib.suppress(NoRanges):
                    return self._found(wheel, client.open(wheel, self._wheels), read)
            return self._found(wheel, local(self._wheels.fetch(wheel)), read)
        except (ZipError, zlib.error, UnicodeError) as error:
            raise WheelUnsafe(f"{wheel.filename} can't be read: {error}", hint="take another version of it") from error

    def _found(self, wheel: LockedWheel, source: ByteSource, read: Callable[[ByteSource], list[str]]) -> list[str]:
        """What `read` finds; Requires-Python is remembered too, if it costs no request."""
        names = read(source)
        self._remember_python(wheel, source)
        return names

    def _remember_python(self, wheel: LockedWheel, source: ByteSource) -> None:
        with contextlib.suppress(ZipError, zlib.error, UnicodeError):
            if (metadata := _metadata(source)).header >= source.held:
                python = str(_headers(source, metadata).get("Requires-Python", ""))
                self._keep("python", wheel, [python if len(python) <= TEXT_LIMIT else ""], shared=False)

    def _kept(self, kind: str, wheel: LockedWheel) -> list[str] | None:
        """What this machine remembers of a wheel."""
        return _names(self._documents.local([FORMAT, kind, wheel.sha256]))

    def _keep(self, kind: str, wheel: LockedWheel, names: Sequence[str], *, shared: bool = True) -> None:
        self._documents.put([FORMAT, kind, wheel.sha256], list(names), shared=shared)


def _names(document: Any) -> list[str] | None:
    return document if isinstance(document, list) and all(isinstance(name, str) for name in document) else None


def _read_modules(source: ByteSource) -> list[str]:
    return sorted(modules(member.name for member in source.members))


def _read_requires(source: ByteSource) -> list[str]:
    lines = map(str, _headers(source, _metadata(source)).get_all("Requires-Dist", []))
    return [line for line in lines if len(line) <= TEXT_LIMIT][:ENTRIES]


def _metadata(source: ByteSource) -> ZipMember:
    found = [one for one in source.members if one.name.count("/") == 1 and one.name.endswith(".dist-info/METADATA")]
    if len(found) != 1:
        raise ZipError("it has no METADATA, or more than one")
    return found[0]


def _headers(source: ByteSource, metadata: ZipMember) -> Message:
    from email.parser import BytesHeaderParser  # noqa: PLC0415 - not needed where everything is remembered

    head = re.split(rb"\r?\n\r?\n", content(source, metadata), maxsplit=1)[0]
    if len(head) > HEADERS_LIMIT:
        raise ZipError(f"its METADATA has more than {HEADERS_LIMIT} bytes before its description")
    return BytesHeaderParser().parsebytes(head)


def _installed(name: str) -> tuple[str, ...]:
    """A member's path below site-packages; empty for files that are installed elsewhere or are not modules."""
    parts = tuple(name.split("/"))
    if not parts[-1] or not parts[-1].endswith((".py", ".so")) or parts[0].endswith(".dist-info"):
        return ()
    if parts[0].endswith(".data"):
        return parts[2:] if parts[1] in {"purelib", "platlib"} else ()
    return parts


def _stem(filename: str) -> str:
    """`six` of `six.py`, `_core` of `_core.cpython-311-x86_64-linux-gnu.so`."""
    return filename.partition(".")[0]


def by_module(roots: Mapping[str, frozenset[str]], wheels: Iterable[LockedWheel], module: str) -> LockedWheel | None:
    """The first wheel that provides a module; None if none does."""
    return next((wheel for wheel in wheels if provided(module, roots.get(wheel.sha256, ()))), None)
