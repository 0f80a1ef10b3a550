"""Which modules a wheel provides and what it requires, read from its directory before the wheel itself is fetched.

The end of a zip names all its members. Two range requests (RFC 9110, 14) bring it, and what was found is kept by the
wheel's hash. A server without ranges costs the whole wheel, which a build needs anyway.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from flops.builder.shared_cache import PROVIDES
from flops.builder.wheels.zip_directory import DEFLATED, STORED, ZipError, list_members
from flops.errors import IndexUnreachable, WheelUnsafe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from email.message import Message
    from pathlib import Path

    import httpx

    from flops.builder.locking.lock import LockedWheel
    from flops.builder.shared_cache import SharedCache
    from flops.builder.wheels.wheel_cache import WheelCache
    from flops.builder.wheels.zip_directory import Member

#: Raised whenever the same wheel would be read otherwise.
FORMAT = 1
#: Bytes of the first request: the end record with the longest comment, and the directory of most wheels.
TAIL = 72 * 1024
MOST_MEMBERS = 200_000
MOST_METADATA = 4 * 1024 * 1024
#: Of one answer; the largest real directories have about 2 MB.
MOST_BYTES = 32 * 1024 * 1024
#: Levels of packages that have no `__init__` of their own (PEP 420) before the rest counts as one.
LEVELS = 3
#: The file by which setuptools stands in for the distutils that Python no longer has.
_DISTUTILS = "distutils-precedence.pth"
#: Wheels that are read at a time.
WORKERS = 8
SECONDS = 20.0
#: Of a member's own header: the fixed part, and room for its name and extra fields.
_LOCAL, _LOCAL_ROOM = 30, 512


def modules(names: Iterable[str]) -> frozenset[str]:
    """The importable roots among a wheel's members: `numpy`, `six`, and `google.protobuf` where `google` is shared.

    A root is the topmost package with an `__init__`; what lies below needs no name of its own.
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
    """Whether a dotted module lies at, below or above one of these roots."""
    return any(f"{module}.".startswith(f"{root}.") or root.startswith(f"{module}.") for root in roots)


class Provides:
    """Reads wheels' directories, and remembers them under `root`. Safe between threads and processes."""

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
        self._shared = shared
        self._root = root
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
        """`Requires-Python` of the wheels of which it is known here, by sha256; nobody is asked.

        Known are those whose end was read for their modules and held the metadata, and those that lie here as a whole.
        """
        found: dict[str, str] = {}
        for wheel in wheels:
            known = self._recall("python", wheel.sha256)
            if known is None and self._wheels.has(wheel):
                with contextlib.suppress(OSError):
                    self._note_python(wheel, _local(self._wheels.path(wheel)))
                known = self._recall("python", wheel.sha256)
            if known and known[0]:
                found[wheel.sha256] = known[0]
        return found

    def _all(
        self, kind: str, wheels: Iterable[LockedWheel], read: Callable[[_Source], list[str]]
    ) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        missing: list[LockedWheel] = []
        for sha256, wheel in {wheel.sha256: wheel for wheel in wheels}.items():
            known = self._recall(kind, sha256)
            if known is None:
                missing.append(wheel)
            else:
                found[sha256] = known
        if missing and self._shared is not None:
            with ThreadPoolExecutor(self._workers) as pool:
                told = list(pool.map(lambda wheel: self._told(kind, wheel), missing))
            found |= {wheel.sha256: names for wheel, names in zip(missing, told, strict=True) if names is not None}
            missing = [wheel for wheel in missing if wheel.sha256 not in found]
        if missing:
            with _Client(self._ca_bundle, self._transport) as client, ThreadPoolExecutor(self._workers) as pool:
                answers = pool.map(lambda wheel: self._read(wheel, client, read), missing)
                for wheel, names in zip(missing, answers, strict=True):
                    found[wheel.sha256] = names
                    self._remember(kind, wheel.sha256, names)
                    if self._shared is not None:
                        self._shared.keep(PROVIDES, _key(kind, wheel.sha256), names)
        return found

    def _told(self, kind: str, wheel: LockedWheel) -> list[str] | None:
        """What another builder found in a wheel."""
        note = self._shared.find(PROVIDES, _key(kind, wheel.sha256)) if self._shared else None
        names = note.content if note else None
        return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None

    def _read(self, wheel: LockedWheel, client: _Client, read: Callable[[_Source], list[str]]) -> list[str]:
        try:
            if not self._wheels.has(wheel):
                with contextlib.suppress(_NoRanges):
                    return self._noted(wheel, client.open(wheel, self._wheels), read)
            return self._noted(wheel, _local(self._wheels.fetch(wheel)), read)
        except (ZipError, zlib.error, UnicodeError) as error:
            raise WheelUnsafe(f"{wheel.filename} can't be read: {error}", hint="take another version of it") from error

    def _noted(self, wheel: LockedWheel, source: _Source, read: Callable[[_Source], list[str]]) -> list[str]:
        """What is read, and the Requires-Python that is there with it."""
        names = read(source)
        self._note_python(wheel, source)
        return names

    def _note_python(self, wheel: LockedWheel, source: _Source) -> None:
        with contextlib.suppress(ZipError, zlib.error, UnicodeError):
            if (metadata := _metadata(source)).header >= source.held:
                python = str(_headers(source, metadata).get("Requires-Python", ""))
                self._remember("python", wheel.sha256, [python])

    def _path(self, kind: str, sha256: str) -> Path:
        return self._root / kind / sha256[:2] / f"{sha256}.json"

    def _recall(self, kind: str, sha256: str) -> list[str] | None:
        try:
            document: dict[str, Any] = json.loads(self._path(kind, sha256).read_bytes())
            return [str(name) for name in document["names"]] if document["format"] == FORMAT else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _remember(self, kind: str, sha256: str, names: Sequence[str]) -> None:
        """What can't be kept is read again next time."""
        path = self._path(kind, sha256)
        temporary = path.with_name(f".new-{os.getpid()}-{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"format": FORMAT, "names": list(names)}))
            temporary.replace(path)


def _key(kind: str, sha256: str) -> str:
    return hashlib.sha256(json.dumps([FORMAT, kind, sha256]).encode()).hexdigest()


class _Source:
    """A wheel that can be read in pieces."""

    def __init__(self, read: Callable[[int, int], bytes], length: int, *, held: int = 0) -> None:
        self.read = read
        self.length = length
        self.held = held
        """Where that begins which costs no request."""

    @cached_property
    def members(self) -> tuple[Member, ...]:
        return list_members(self.read, self.length, most=MOST_MEMBERS)


class _NoRanges(Exception):
    """The server gives only whole files."""


class _Client:
    """Range requests; the connection is opened with the first one."""

    def __init__(self, ca_bundle: Path | None, transport: httpx.BaseTransport | None) -> None:
        import httpx  # noqa: PLC0415 - slow to import, and not needed where everything is remembered

        from flops.builder.locking.index import tls  # noqa: PLC0415

        self._httpx = httpx
        self._client = httpx.Client(
            verify=tls(ca_bundle) if transport is None else True,
            transport=transport,
            timeout=SECONDS,
            follow_redirects=True,
            headers={"Accept-Encoding": "identity"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def open(self, wheel: LockedWheel, wheels: WheelCache) -> _Source:
        """The wheel's end is here afterwards, and other parts are asked for as they are read. _NoRanges."""
        auth = wheels.auth(wheel)
        first = max(0, wheel.size - TAIL) if wheel.size is not None else None
        tail, start, length = self._get(wheel, auth, f"{first}-" if first is not None else f"-{TAIL}")
        if wheel.size not in {None, length}:
            raise ZipError("it has another size than was locked")

        def read(offset: int, size: int) -> bytes:
            if offset >= start:
                return tail[offset - start : offset - start + size]
            return self._get(wheel, auth, f"{offset}-{min(offset + size, length) - 1}")[0]

        return _Source(read, length, held=start)

    def _get(self, wheel: LockedWheel, auth: tuple[str, str] | None, what: str) -> tuple[bytes, int, int]:
        """The bytes, where they begin, and how long the whole file is."""
        try:
            with self._client.stream("GET", wheel.url, headers={"Range": f"bytes={what}"}, auth=auth) as response:
                if response.status_code in {200, 416, 501}:
                    raise _NoRanges
                if response.status_code != self._httpx.codes.PARTIAL_CONTENT:
                    raise IndexUnreachable(f"{wheel.filename} can't be read: status {response.status_code}")
                unit, _, place = response.headers.get("Content-Range", "").partition(" ")
                span, _, length = place.partition("/")
                start, _, end = span.partition("-")
                if unit != "bytes" or not (start.isdecimal() and end.isdecimal() and length.isdecimal()):
                    raise _NoRanges
                return _bounded(response, int(end) - int(start) + 1), int(start), int(length)
        except (self._httpx.HTTPError, self._httpx.InvalidURL) as error:
            raise IndexUnreachable(
                f"{wheel.filename} can't be read: {type(error).__name__}",
                hint="nothing is wrong with the repository; try again later",
            ) from error


def _bounded(response: httpx.Response, size: int) -> bytes:
    """The body, as long as its header said; one that goes on is not read."""
    if size > MOST_BYTES:
        raise ZipError(f"its directory has more than {MOST_BYTES} bytes")
    data = bytearray()
    for piece in response.iter_raw():
        data += piece
        if len(data) > size:
            raise _NoRanges
    return bytes(data)


def _local(path: Path) -> _Source:
    def read(offset: int, size: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    return _Source(read, path.stat().st_size)


def _read_modules(source: _Source) -> list[str]:
    return sorted(modules(member.name for member in source.members))


def _read_requires(source: _Source) -> list[str]:
    return [str(line) for line in _headers(source, _metadata(source)).get_all("Requires-Dist", [])]


def _metadata(source: _Source) -> Member:
    found = [one for one in source.members if one.name.count("/") == 1 and one.name.endswith(".dist-info/METADATA")]
    if len(found) != 1:
        raise ZipError("it has no METADATA, or more than one")
    return found[0]


def _headers(source: _Source, metadata: Member) -> Message:
    from email.parser import BytesHeaderParser  # noqa: PLC0415 - not needed where everything is remembered

    return BytesHeaderParser().parsebytes(_content(source, metadata))


def _content(source: _Source, member: Member) -> bytes:
    if max(member.size, member.compressed_size) > MOST_METADATA:
        raise ZipError(f"{member.name} is larger than any text needs")
    data = source.read(member.header, _LOCAL + _LOCAL_ROOM + member.compressed_size)
    skipped = _LOCAL + int.from_bytes(data[26:28], "little") + int.from_bytes(data[28:30], "little")
    if len(data) < skipped + member.compressed_size:
        data = source.read(member.header, skipped + member.compressed_size)
    raw = data[skipped : skipped + member.compressed_size]
    if member.method == STORED:
        return raw
    if member.method != DEFLATED:
        raise ZipError(f"{member.name} is compressed in a way that wheels don't use")
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, MOST_METADATA)


def _installed(name: str) -> tuple[str, ...]:
    """A member's path below site-packages; empty for what is installed elsewhere or is no module."""
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
    """The first wheel that provides a module; None where none does."""
    return next((wheel for wheel in wheels if provided(module, roots.get(wheel.sha256, ()))), None)
