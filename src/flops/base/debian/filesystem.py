"""From Debian packages to one file tree: which files are kept, where they go, and what no package brings (pure, save reads)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flops.base.debian.deb import DebEntry, DebEntryKind
from flops.errors import LayerConflict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from flops.oci.layer import LayerWriter

#: Raised whenever the same packages would give another tree.
TREE_VERSION = 1
USER = 65532
HOME = "home/flops"
_CERTIFICATES = "usr/share/ca-certificates/mozilla/"
_BUNDLE = "etc/ssl/certs/ca-certificates.crt"
#: Since Debian 12 the merged /usr is the rule, and packages still ship the old paths.
_MERGED = frozenset({"bin", "sbin", "lib", "lib64"})
#: For people, for shells and package managers, and zones counted with leap seconds.
_LEFT_OUT = re.compile(
    r"""usr/share/(?:man|info|locale|lintian|doc-base|bash-completion|menu|pixmaps|applications|icons|binfmts
        |debianutils|debconf|gdb|perl5|base-files|zoneinfo/(?:posix|right)|doc/[^/]+/(?!copyright$).+)(?:/|$)
    |usr/sbin/update-ca-certificates$|etc/ca-certificates|var/lib/dpkg|etc/(?:cron|init\.d|update-motd\.d|default|systemd)
    |(?:usr/)?lib/systemd|usr/share/python3/(?:runtime\.d|debpython)|boot(?:/|$)|media(?:/|$)|mnt(?:/|$)|srv(?:/|$)""",
    re.VERBOSE,
)
_MODES = {"tmp": 0o1777, "var/tmp": 0o1777, "root": 0o700}
_TEXTS = {
    "etc/passwd": "root:x:0:0:root:/root:/usr/sbin/nologin\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    f"flops:x:{USER}:{USER}:flops:/{HOME}:/usr/sbin/nologin\n",
    "etc/group": f"root:x:0:\nnogroup:x:65534:\nflops:x:{USER}:\n",
    # glibc's default asks DNS first, also for localhost
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
}
#: OpenSSL's own directory belongs to the program's package, which is left out; without these Python loads no certificate.
_SSL_LINKS = {"usr/lib/ssl/cert.pem": "/etc/ssl/certs/ca-certificates.crt", "usr/lib/ssl/certs": "/etc/ssl/certs"}


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package's files and how to read them."""

    name: str
    control: bytes
    """Its control stanza; scanners find it under /var/lib/dpkg/status.d."""
    entries: tuple[DebEntry, ...]
    read: Callable[[DebEntry], Iterator[bytes]]


@dataclass(frozen=True, kw_only=True)
class _Placed:
    entry: DebEntry
    package: Package


def write_tree(packages: Iterable[Package], python: str, writer: LayerWriter) -> None:
    """Write the base of these packages and Python's minor version (`3.11`) into a layer, sorted by path.

    LayerConflict where two packages bring different things to one path.
    """
    ordered = sorted(packages, key=lambda package: package.name)
    placed = place(ordered)
    made: dict[str, bytes | str] = {path: text.encode() for path, text in _TEXTS.items()}
    made |= {f"var/lib/dpkg/status.d/{package.name}": package.control for package in ordered}
    made[_BUNDLE] = bundle(placed)
    made |= {
        name: f"usr/{name}" for name in _MERGED if name != "lib64" or any(p.startswith("usr/lib64/") for p in placed)
    }
    made |= _SSL_LINKS
    made["usr/bin/python3"] = f"python{python}"
    directories = {"tmp", "var/tmp", "root", "run", "proc", "sys", "dev", HOME}
    for path in sorted(placed.keys() | made.keys() | directories):
        if path in made:
            _write_made(path, made[path], writer)
        elif path in placed and placed[path].entry.kind is not DebEntryKind.DIRECTORY:
            _write_placed(path, placed[path], writer)
        else:
            owner = USER if path == HOME else 0
            writer.directory(path, mode=_MODES.get(path, 0o755), uid=owner, gid=owner)


def place(packages: Iterable[Package]) -> dict[str, _Placed]:
    """What is kept of each package, by its path in the image."""
    placed: dict[str, _Placed] = {}
    for package in packages:
        for entry in package.entries:
            path = merged(entry.path)
            if path in _MERGED or _LEFT_OUT.match(path):
                continue
            new = _Placed(entry=entry, package=package)
            old = placed.setdefault(path, new)
            if old is not new and not _same(old, new):
                raise LayerConflict(f"{old.package.name} and {package.name} both bring /{path}, and not the same")
    return placed


def merged(path: str) -> str:
    """`lib/x` is `usr/lib/x` in a file system with a merged /usr."""
    head, slash, rest = path.partition("/")
    return f"usr/{head}/{rest}" if slash and head in _MERGED else path


def bundle(placed: dict[str, _Placed]) -> bytes:
    """All certificates in C order, each ending in a newline, as update-ca-certificates writes them."""
    names = sorted(path for path in placed if path.startswith(_CERTIFICATES) and path.endswith(".crt"))
    texts = [b"".join(placed[name].package.read(placed[name].entry)) for name in names]
    return b"".join(text if text.endswith(b"\n") else text + b"\n" for text in texts)


def _same(old: _Placed, new: _Placed) -> bool:
    one, other = old.entry, new.entry
    if one.kind is not other.kind:
        return False
    match one.kind:
        case DebEntryKind.DIRECTORY:
            return True
        case DebEntryKind.LINK:
            return one.target == other.target
        case DebEntryKind.FILE:
            return one.size == other.size and b"".join(old.package.read(one)) == b"".join(new.package.read(other))


def _write_made(path: str, content: bytes | str, writer: LayerWriter) -> None:
    if isinstance(content, str):
        writer.link(path, content)
    else:
        writer.file(path, content)


def _write_placed(path: str, placed: _Placed, writer: LayerWriter) -> None:
    entry = placed.entry
    if entry.kind is DebEntryKind.LINK:
        writer.link(path, entry.target)
    else:
        # setuid and setgid are dropped: nothing in the image changes its user
        mode = 0o755 if entry.executable else 0o644
        writer.file(path, placed.package.read(entry), size=entry.size, mode=mode)
