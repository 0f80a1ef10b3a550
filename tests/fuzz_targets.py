"""Readers of text and bytes that others wrote, each with samples to damage, and three bugs that a fuzzer has to find when they are planted.

`tests/unit/test_fuzzing.py` tries some dozen damaged samples of each, `make soak` ten minutes of them, in a process that is ended after 5 s
of one sample or at 300 MB. A seed that failed there: `python -m tests.fuzz_targets NAME --seed N` runs it alone and shows what it read.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gzip
import importlib
import io
import json
import os
import random
import re
import resource
import signal
import socket
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

from tests.unit.test_deb import ar
from tests.unit.test_wheel_layer import record_row

from flops.base.debian.deb import read_control, unpack_data
from flops.base.image_tree import ImageTree
from flops.errors import DependencyError, FlopsError
from flops.formats import requirements
from flops.oci.blobs import BlobStore
from flops.oci.layer import Layer
from flops.oci.reference import Reference, Registry
from flops.repair.spelling import explained
from flops.service.incoming import judge_events
from flops.service.named_credentials import CredentialNames
from flops.service.refusals import Refused, parse_body
from flops.service.sla import parse_sla
from flops.wheels import provides
from flops.wheels.archive import WheelArchive
from flops.wheels.install import Prefix, installed_files
from flops.wheels.ranges import local
from flops.wheels.zip_directory import ZipError
from flops_wire import frames

ROOT = Path(__file__).parents[1]
#: Of one sample.
SECONDS, MEMORY = 5, 300 * 1024**2
#: A path `module:attribute` and when a call of it ends with an IndexError.
Plant = tuple[str, Callable[..., object]]


@dataclass(frozen=True, kw_only=True)
class Target:
    run: Callable[[bytes, Path], object]
    """Reads bytes, with a directory to write into; ends with a FlopsError, one of `allowed`, or well."""
    seeds: tuple[bytes, ...]
    tokens: tuple[bytes, ...]
    modules: tuple[str, ...]
    """Whose lines are counted."""
    plants: tuple[Plant, Plant, Plant]
    allowed: tuple[type[Exception], ...] = ()
    most: int = 64 * 1024


def mutated(target: Target, seed: int) -> bytes:
    """One sample with one to twelve damages; the same for the same seed."""
    chance = random.Random(seed)
    data = bytearray(chance.choice(target.seeds))
    for _ in range(chance.choice((1, 1, 2, 3, 5, 12))):
        places = [chance.randrange(len(data) + 1) for _ in range(6)]
        at = next((place for place in places if data[place : place + 1] > b"\0"), places[0])  # padding says little
        end = min(len(data), at + int(chance.expovariate(1 / 12)))
        token = chance.choice(target.tokens)
        match chance.randrange(9):
            case 0:
                del data[at:end]
            case 1:
                data[at:at] = token
            case 2:
                data[at:end] = token
            case 3 if at < len(data):
                data[at] = chance.randrange(256)
            case 7:  # nothing moves: a tar's blocks stay where they are
                data[at : at + len(token)] = token
            case 4:
                data[at:at] = token * min(2 ** chance.randrange(17), target.most // len(token))
            case 5:
                data[at:at] = data[at:end] * 2 ** chance.randrange(8)
            case 6:
                other = chance.choice(target.seeds)
                data[at:at] = other[chance.randrange(len(other) + 1) :][: chance.randrange(400)]
            case _:
                numbers = list(re.finditer(rb"\d+", data))
                if numbers:
                    found = chance.choice(numbers)
                    data[found.start() : found.end()] = chance.choice((b"0", b"-1", b"4294967295", b"9" * 5000, b"1e9"))
    return bytes(data[: target.most])


#: Files that `--group` holds for.
WITH_GROUPS = {name for one in requirements.FORMATS if one.has_groups for name in one.names}


# --- readers ------------------------------------------------------------------------------------------------------------
def _dependencies(path: str) -> Callable[[bytes, Path], object]:
    def run(data: bytes, _: Path) -> object:
        files = {path: data, "a.txt": b"numpy==1.26.4\n-r requirements.txt\n"}
        groups = ("dev",) if path in WITH_GROUPS and b"dev" in data and len(data) % 2 else ()
        read = partial(requirements.read, groups=groups)
        try:
            return read(files)
        except DependencyError as error:  # the search for what is meant reads many times: of some samples is enough
            return explained(error, files, read) if len(data) % 4 == 0 else None

    return run


def _wheel(data: bytes, room: Path) -> object:
    """A wheel, or lines `NAME=TEXT` of which one is made with a right RECORD."""
    path = room / "demo-1.0-py3-none-any.whl"
    path.write_bytes(data if data.startswith(b"PK") else _packed(data))
    with WheelArchive.open(path) as archive:
        for file in installed_files(archive, Prefix(path="opt/ml", python="3.11")):
            file.read()
        _ = archive.licence
    try:  # as `Provides` does
        return provides._read_modules(local(path)), provides._read_requires(local(path))
    except (ZipError, zlib.error, UnicodeError):
        return None


def _packed(text: bytes) -> bytes:
    files = dict(line.split("=", 1) for line in text.decode("utf-8", "replace").splitlines() if line.find("=") > 0)
    told = files.pop("RECORD", "").replace("|", "\n")
    output = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")
        rows = []
        for name, content in files.items():
            if name.startswith("\0") or len(name) > 9000:  # zipfile can't write it
                continue
            archive.writestr(name, content.replace("|", "\n"))
            rows.append(record_row(name, content.replace("|", "\n").encode()))
        archive.writestr("demo-1.0.dist-info/RECORD", "\n".join([*rows, "demo-1.0.dist-info/RECORD,,", told]))
    return output.getvalue()


def _deb(data: bytes, room: Path) -> object:
    """A package, or the tar of one's files, which becomes that of its control files, too."""
    path = room / "tiny_1_all.deb"
    if not data.startswith(b"!<arch>"):
        inner = gzip.compress(_summed(data), 1)
        data = ar(("debian-binary", b"2.0\n"), ("control.tar.gz", inner), ("data.tar.gz", inner))
    path.write_bytes(data)
    with tempfile.TemporaryFile(dir=room) as spool:
        unpack_data(path, spool)
    return read_control(path)


def _layer(data: bytes, room: Path) -> object:
    store = BlobStore(room / "blobs")
    ending = next(
        (name for mark, name in ((b"\x1f\x8b", "+gzip"), (b"(\xb5/\xfd", "+zstd")) if data.startswith(mark)), ""
    )
    digest = store.put(data if ending else _summed(data))
    kind = f"application/vnd.oci.image.layer.v1.tar{ending}"
    below = Layer(digest=digest, diff_id=digest, size=len(data), uncompressed_size=len(data), media_type=kind)
    tree = ImageTree.read([below, below], store)
    for path in [*tree.nodes][:20]:
        tree.resolve(path)
    tree.extract(tree.files(lambda path: len(path) < 50)[:20], room / "out")
    return tree


def _summed(data: bytes) -> bytes:
    """A tar whose headers have a right checksum again: a damaged one ends every reader at once."""
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    for number, block in enumerate(blocks):
        if block[257:262] == b"ustar":
            total = sum(block[:148]) + 8 * 32 + sum(block[156:])
            blocks[number] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


def _reference(data: bytes, _: Path) -> object:
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(FlopsError):
        Registry.parse(text).repository("a", "b")
    return str(Reference.parse(text))


def _sla(data: bytes, _: Path) -> object:
    return parse_sla(parse_body(data), names=CredentialNames(), registry="http://127.0.0.1:5073").to_json()


def _events(data: bytes, _: Path) -> object:
    document = parse_body(data)
    return judge_events(document.get("events") if isinstance(document, dict) else document, project="p", attempt=1)


def _frame(data: bytes, _: Path) -> object:
    """A frame, or a header as text whose length is put before it, a NUL, and its arrays."""
    if data.startswith(b"{"):
        header, _nul, body = data.partition(b"\0")
        data = struct.pack(">I", len(header)) + header + body
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        return frames.receive(theirs)


# --- samples ------------------------------------------------------------------------------------------------------------
def _tar(*members: tuple[str, bytes, bytes | str]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                archive.addfile(info)
    return output.getvalue()[:4096]


def _tars() -> tuple[bytes, ...]:
    file, link, hard, directory = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
    return (
        _tar(
            ("./", directory, ""), ("./control", file, b"Package: a\n"), ("./b", hard, "./control"), ("./c", link, "b")
        ),
        _tar(
            ("usr/bin/x", file, b"x" * 600),
            ("usr/.wh.b", file, b""),
            ("a/.wh..wh..opq", file, b""),
            ("u", link, "/usr"),
        ),
        _tar(("d" * 90 + "/" + "e" * 90 + "/ä", file, b"1"), ("h", hard, "missing"), ("control", file, b"a: b\n")),
    )


# fmt: off
def _samples(name: str) -> tuple[bytes, ...]:
    """Files of the sample repositories."""
    return tuple(sorted({path.read_bytes() for path in (ROOT / "tests" / "repos").glob(f"*/{name}")}))


_WHEEL = (
    b"demo/__init__.py=x = 1|\ndemo-1.0.data/scripts/t=#!python|\ndemo-1.0.dist-info/WHEEL=Wheel-Version: 1.0|Root-Is-Purelib: true|\n"
    b"demo-1.0.dist-info/METADATA=Name: demo|Version: 1.0|Requires-Dist: numpy|License: MIT|Classifier: License :: OSI Approved :: MIT License|\n"
    b"demo-1.0.dist-info/entry_points.txt=[console_scripts]|d = demo:main|\n"
)
_SLA = json.loads((ROOT / "examples" / "sla.json").read_bytes())
_MORE = {"ml_repo_url": "https://h/a/b", "base_image": "h:1/x:1", "python": "3.11", "groups": ["a"], "ml_repo_subdir": "a/b"}
_EVENT = {"id": "0190a000-0000-7000-8000-000000000000", "time": "2024-01-01T00:00:00.000Z", "stage": "push", "kind": "started", "message": "m"}
_DATA: tuple[dict[str, Any], ...] = (
    {"data": {"a": [1]}, "code": None}, {"kind": "failed", "data": {"error": {"code": "X", "message": "m", "findings": []}}},
    {"code": "TAGGING", "data": {"images": {"learner": {"digest": "d", "platforms": {"linux/amd64": "d"}}}}},
    {"kind": "succeeded", "data": {"result": {"images": {"a": {"platforms": {}}}}}},
)
_FRAME = b'{"call":"x","arrays":[{"dtype":"<f8","shape":[1]},{"dtype":"|b1","shape":[2,2]}]}\0' + bytes(12)
_DEB = ar(("debian-binary", b"2.0\n"), *((f"{name}.tar.gz", gzip.compress(_tars()[0], mtime=0)) for name in ("control", "data")))

_TEXT = (b" ", b"\t", b"\n", b"\r\n", b"\\\n", b"#", b"'", b'"', b"'''", b'"""', b"\\", b"\0", b"\xff", "İ—".encode(), b"\xef\xbb\xbf", b"${A}")
_PEP508 = (
    b"(", b")", b"[", b"]", b",", b";", b"==", b">=", b"~=", b"===", b"!=", b"<", b" and ", b" or ", b"python_version", b"'3.8'", b"extra == 'a'",
    b"1.0.*", b"1!2.dev1+cu118", b"@ https://x", b"-r a.txt", b"-e .", b"--hash=sha256:", b"-", b".", b"/",
)
_YAML = (
    b"- ", b"? ", b": ", b"{", b"}", b"[", b"]", b"{a: ", b"&a ", b"*a", b"!!str ", b"|\n", b">\n", b"---\n", b"  ", b"pip:", b"dependencies:",
    b"=1.2", b"=*_cuda", b"::", b"python=3.9",
)
_TOML = (
    b"[", b"]", b"{", b"}", b"[[a]]\n", b"a.", b"'a' . ", b"a = ", b"{a=", b"= ", b"1979-05-27T07:32:00Z", b"0x1", b"inf", b"[a.b]\n",
    b"name = 'a'\n", b"\\u0041", b"{include-group = 'b'}",
)
_JSON = (b"{", b"}", b"[", b"]", b'{"a":', b'"', b",", b":", b"null", b"true", b"NaN", b"\\ud800", b"\\u0000", b"1e999", b'"git_credential":"a",', b"/", b"a")
_BINARY = (b"\0", b"\xff", b"\0" * 512, b"PK\x05\x06", b"PK\x01\x02", b"ustar", b"x", b"0000644", b"../", b"/", b".wh.", b"./", b"12 path=", b"\n", b"5", b"1", b"2", b"L")
_LINE = (
    b"demo-1.0.dist-info/", b"demo-1.0.data/", b"=", b"|", b"\n", b"../", b"RECORD=", b"a,,|", b"a,sha256=x,1|", b"Requires-Dist: ",
    b"[gui_scripts]|", b"a = b:c|", b"#!python", b"__init__.py", b".so", b"d/",
)
_HOST = (b"/", b":", b"@", b"[", b"]", b"..", b"__", b"://", b"https://", b"sha256:", b"%", b"65536", b"A", b"-")

_FORMATS = "flops.formats."
TARGETS = {
    "requirements": Target(
        run=_dependencies("requirements.txt"), seeds=_samples("requirements.txt"), tokens=_TEXT + _PEP508,
        modules=(_FORMATS + "requirement", _FORMATS + "requirement_lines"),
        plants=(
            (_FORMATS + "requirement_lines:RequirementLines._follow", lambda self, path, line, value: not value.endswith(".txt")),
            (_FORMATS + "requirement:Reading.add", lambda self, text, **_: text.endswith("[")),
            (_FORMATS + "requirement:depth", lambda text: text.count("(") > 3),
        ),
    ),
    "conda": Target(
        run=_dependencies("conda.yaml"), seeds=_samples("conda.yaml"), tokens=_TEXT + _YAML + _PEP508,
        modules=(_FORMATS + "conda", _FORMATS + "yaml_document"),
        plants=(
            (_FORMATS + "conda:_clause", lambda text: not text),
            (_FORMATS + "conda:is_not_empty", lambda node: not node.value),
            (_FORMATS + "conda:match_spec", lambda text: "[" in text),
        ),
    ),
    "python_env": Target(
        run=_dependencies("python_env.yaml"), seeds=_samples("python_env.yaml"), tokens=_TEXT + _YAML + _PEP508,
        modules=(_FORMATS + "python_env", _FORMATS + "yaml_document"),
        plants=(
            (_FORMATS + "python_env:_read_python", lambda path, node, reading: "." not in node.value),
            (_FORMATS + "requirement:Reading.ask_python", lambda self, specifiers, **_: ".*" in specifiers),
            (_FORMATS + "python_env:line_of", lambda node: node.start_mark.line > 9),
        ),
    ),
    "pyproject": Target(
        run=_dependencies("pyproject.toml"), seeds=_samples("pyproject.toml"), tokens=_TEXT + _TOML + _PEP508,
        modules=(_FORMATS + "pyproject", _FORMATS + "toml_document"),
        plants=(
            (_FORMATS + "toml_document:Unfit.__init__", lambda self, line, reason: line == 1),
            (_FORMATS + "pyproject:_Project._requirement", lambda self, text, line: len(text) > 30),
            (_FORMATS + "toml_document:_Scanner.collection", lambda self, path, closing: len(path) > 3),
        ),
    ),
    "uv.lock": Target(
        run=_dependencies("uv.lock"), seeds=_samples("uv.lock"), tokens=_TEXT + _TOML + _PEP508, most=512 * 1024,
        modules=(_FORMATS + "uv_lock", _FORMATS + "lockfiles"),
        plants=(
            (_FORMATS + "uv_lock:_Graph._look", lambda self, edge, environment: edge.name not in self.nodes),
            (_FORMATS + "lockfiles:_address", lambda url: url and not str(url).startswith("http")),
            (_FORMATS + "uv_lock:package_version", lambda value: len(str(value)) > 12),
        ),
    ),
    "pylock.toml": Target(
        run=_dependencies("pylock.toml"), seeds=_samples("pylock.toml"), tokens=_TEXT + _TOML + _PEP508, most=512 * 1024,
        modules=(_FORMATS + "pylock_file", _FORMATS + "lockfiles"),
        plants=(
            (_FORMATS + "lockfiles:_address", lambda url: url and not str(url).startswith("http")),
            (_FORMATS + "lockfiles:_sha256", lambda entry: len(entry) < 3),
            (_FORMATS + "pylock_file:package_version", lambda value: len(str(value)) > 12),
        ),
    ),
    "wheel": Target(
        run=_wheel, seeds=(_WHEEL, _packed(_WHEEL)), tokens=_LINE + _BINARY,
        modules=("flops.wheels.archive", "flops.wheels.zip_directory", "flops.wheels.install"),
        plants=(
            ("flops.wheels.zip_directory:_refuse_overlap", lambda members: len(members) > 6),
            ("flops.wheels.archive:_row_problems", lambda member, entry: entry is None),
            ("flops.wheels.archive:_short", lambda value: value is not None and len(str(value)) > 12),
        ),
    ),
    "deb": Target(
        run=_deb, seeds=(_tars()[0], _DEB), tokens=_BINARY, modules=("flops.base.debian.deb",),
        plants=(
            ("flops.base.debian.deb:_clean", lambda package, name: name.strip("./") not in ("", "control", "b", "c")),
            ("flops.base.debian.deb:_broken", lambda path, what: "damaged" in what),
            ("flops.base.debian.deb:_broken", lambda path, what: "control file" in what),
        ),
    ),
    "reference": Target(
        run=_reference, tokens=_TEXT + _HOST, modules=("flops.oci.reference",),
        seeds=(b"http://127.0.0.1:5073/acme/digits:v1", b"[::1]:5000/a@sha256:" + b"a" * 64, b"docker.io/python:3", b"h.example/a/b"),
        plants=(
            ("flops.oci.reference:_is_host", lambda name: name.startswith("[") and not name.endswith("]")),
            ("flops.oci.reference:check_tag", lambda text: text == ""),
            ("flops.oci.reference:repository_name", lambda text: text.count("/") > 3),
        ),
    ),
    "sla": Target(
        run=_sla, seeds=(json.dumps(_SLA | _MORE).encode(), b'{"ml_repo_url": "https://h/a/b"}'), tokens=_JSON + _TEXT, allowed=(Refused,),
        modules=("flops.service.sla", "flops.service.sla_fields", "flops.service.refusals"),
        plants=(
            ("flops.service.sla_fields:_shown", lambda key: True),
            ("flops.service.sla:_subdir", lambda top: len(top.values) == 2),
            ("flops.service.refusals:_refuse", lambda constant: True),
        ),
    ),
    "events": Target(
        run=_events, seeds=tuple(json.dumps({"events": [_EVENT | more]}).encode() for more in _DATA), tokens=_JSON + _TEXT,
        allowed=(Refused,), modules=("flops.service.incoming",),
        plants=(
            ("flops.service.incoming:_is_move", lambda data: "images" not in data),
            ("flops.service.incoming:_is_error", lambda error: not isinstance(error, dict) or len(error) < 3),
            ("flops.service.incoming:_is_text", lambda value, limit: value not in (None, "m", "TAGGING")),
        ),
    ),
    "frames": Target(
        run=_frame, seeds=(_FRAME, struct.pack(">I", len(_FRAME) - 13) + _FRAME[:-13] + bytes(12)), allowed=(frames.FrameError,),
        tokens=(*_JSON, b"<c16", b'"arrays":', b'"shape":', b"0", b"-1", b"4294967296"), modules=("flops_wire.frames",),
        plants=(
            ("flops_wire.frames:item_size", lambda dtype: len(dtype) > 4),
            ("flops_wire.frames:_check_limits", lambda header, arrays: len(arrays) > 2),
            ("flops_wire.frames:_size", lambda dtype, shape: 0 in shape),
        ),
    ),
    "layer": Target(
        run=_layer, seeds=(*_tars(), gzip.compress(_tars()[1], mtime=0)), tokens=_BINARY, modules=("flops.base.image_tree",),
        plants=(
            ("flops.base.image_tree:_Changes.upon", lambda self, below: bool(self._gone - {"usr/b", "a"})),
            ("flops.base.image_tree:_clean", lambda name: ".." in name),
            ("flops.base.image_tree:ImageTree.resolve", lambda self, path: self.nodes[path].target not in ("", "b", "/usr")),
        ),
    ),
}
# fmt: on


# --- running ------------------------------------------------------------------------------------------------------------
def attempt(target: Target, data: bytes, room: Path) -> None:
    """Raises what is neither an error of ours nor allowed."""
    with contextlib.suppress(FlopsError, *target.allowed):
        target.run(data, room)


@contextlib.contextmanager
def planted(plant: Plant) -> Iterator[None]:
    """With a bug: a function that fails where its arguments are of a kind."""
    path, holds = plant
    module, _, name = path.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, last = name.split(".")
    for one in outer:
        owner = getattr(owner, one)
    real = getattr(owner, last)

    def broken(*arguments: Any, **named: Any) -> Any:
        if holds(*arguments, **named):
            raise IndexError("planted")
        return real(*arguments, **named)

    setattr(owner, last, broken)
    try:
        yield
    finally:
        setattr(owner, last, real)


def found_after(target: Target, plant: Plant, room: Path, most: int) -> int | None:
    """The number of samples after which a planted bug is found."""
    with planted(plant):
        for seed in range(most):
            try:
                attempt(target, mutated(target, seed), room)
            except IndexError:
                return seed + 1
    return None


def coverage(target: Target, room: Path, samples: int) -> dict[str, float]:
    """The part of each module's lines that so many samples reach, in percent; of what stands in functions."""
    reached: dict[str, set[int]] = collections.defaultdict(set)
    files = {str(importlib.import_module(name).__file__): name for name in target.modules}

    def trace(frame: Any, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            reached[frame.f_code.co_filename].add(frame.f_lineno)
        return trace

    sys.settrace(trace)
    try:
        for seed in range(samples):
            attempt(target, mutated(target, seed), room)
    finally:
        sys.settrace(None)
    percent = {}
    for file, name in files.items():
        pending: list[CodeType] = [compile(Path(file).read_text(), file, "exec")]
        lines: set[int] = set()
        while pending:
            code = pending.pop()
            pending += [one for one in code.co_consts if isinstance(one, CodeType)]
            if "CO_NEWLOCALS" and code.co_flags & 2 and code.co_name != "<module>":
                lines |= {line for _, _, line in code.co_lines() if line and line != code.co_firstlineno}
        percent[name] = 100 * len(lines & reached[file]) / len(lines)
    return percent


def main() -> None:
    """Run samples for some seconds, each within its bounds; a status file holds the seed that is tried."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=TARGETS)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--from", type=int, default=0, dest="start")
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--status", type=Path)
    asked = parser.parse_args()
    target = TARGETS[asked.name]
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory(prefix="flops-fuzz-") as name:
        if asked.seed is not None:
            sys.stdout.write(f"{mutated(target, asked.seed)!r:.2000}\n")
            attempt(target, mutated(target, asked.seed), Path(name))
            return
        status = os.open(asked.status, os.O_WRONLY | os.O_CREAT)
        seed, end = asked.start, time.monotonic() + asked.seconds
        while time.monotonic() < end:
            os.pwrite(status, b"%20d" % seed, 0)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of a processor; nothing catches the signal
            attempt(target, mutated(target, seed), Path(name))
            seed += 1


if __name__ == "__main__":
    main()
