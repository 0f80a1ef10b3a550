"""Bytecode: what the import system takes, the same bytes whatever surrounds the compilation."""

import importlib.util
import io
import marshal
import os
import sys
import tarfile
from functools import partial
from pathlib import Path

import pytest

from flops.base import bytecode
from flops.base.bytecode import BytecodeTarget, Interpreter, pyc_path, write_bytecode
from flops.errors import BuildError
from flops.oci.layer import LayerWriter

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"


class Ours(Interpreter):
    """The Python of these tests in the place of a base's."""

    def command(self, arguments):
        return [sys.executable, *map(str, arguments)]

    @property
    def home(self):
        return Path(sys.base_prefix)


OURS = Ours(root=Path("/"), minor=MINOR, program="usr/bin/python", loader="", libraries=())
SOURCES = {
    "opt/before.py": b"from os.path import *\nnames = ['*', '-', 'join']\n",
    "opt/plain.py": b"import sys\nsign = '*'\nmarks = {'a', 'b', 'c', '*'}\ndef f(x):\n    return x in {'q', 'r', 's', 1, 2.5}\n",
    "opt/pkg/__init__.py": "name = 'Grüße'\n".encode(),
    "opt/pkg/deep/module.py": b"raise ValueError('here')\n",
    "opt/latin.py": b"# -*- coding: latin-1 -*-\nx = '\xe9'\n",
    "opt/zlast.py": b"a = 'x'\nb = 'star'\n",
}


def compiled(sources=SOURCES, *, workers=2):
    """The .pyc files of one layer by path, in the layer's order, and what was left out."""
    output = io.BytesIO()
    writer = LayerWriter(output)
    left_out = write_bytecode(OURS, [target(writer, sources)], workers=workers)
    writer.close()
    return contents(output), left_out


def target(writer, sources):
    return BytecodeTarget(writer=writer, sources={path: partial(bytes, data) for path, data in sources.items()})


def contents(output):
    output.seek(0)
    with tarfile.open(fileobj=output, mode="r:gz") as archive:
        return {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}


def test_bytecode_lies_where_the_import_system_looks_sorted_by_path():
    files, left_out = compiled()
    assert left_out == ()
    assert list(files) == sorted(pyc_path(path, MINOR) for path in SOURCES)
    cached = importlib.util.cache_from_source("/opt/pkg/deep/module.py")
    assert "/" + pyc_path("opt/pkg/deep/module.py", MINOR) == cached


def test_bytecode_is_unchecked_carries_the_sources_hash_and_names_the_path_in_the_image():
    files, _ = compiled()
    data = files[pyc_path("opt/pkg/deep/module.py", MINOR)]
    assert data[:4] == importlib.util.MAGIC_NUMBER
    assert int.from_bytes(data[4:8], "little") == 0b01
    assert data[8:16] == importlib.util.source_hash(SOURCES["opt/pkg/deep/module.py"])
    code = marshal.loads(data[16:])
    assert code.co_filename == "/opt/pkg/deep/module.py"
    with pytest.raises(ValueError, match="here"):
        exec(code, {})


def test_python_runs_from_it_even_where_the_source_has_changed(tmp_path):
    files, _ = compiled({"mod.py": b"value = 'from bytecode'\n"})
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "mod.py").write_text("value = 'from source'\n")
    (tmp_path / pyc_path("mod.py", MINOR)).write_bytes(files[pyc_path("mod.py", MINOR)])
    spec = importlib.util.spec_from_file_location("mod", tmp_path / "mod.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.value == "from bytecode"


def test_what_is_no_python_is_left_out_and_told():
    bad = {
        "opt/py2.py": b"print 'hello'\n",
        "opt/nul.py": b"x = '\0'\n",
        "opt/encoding.py": b"# -*- coding: klingon -*-\n",
        "opt/deep.py": b"x = " + b"(" * 5000 + b"\n",
    }
    files, left_out = compiled(SOURCES | bad)
    assert sorted(left_out) == sorted(bad)
    assert len(files) == len(SOURCES)


def test_the_bytes_depend_on_nothing_but_the_source(monkeypatch, tmp_path):
    """Chunks, their order, workers, umask, time zone, directory and hash seed of whoever calls."""
    first, _ = compiled()
    monkeypatch.setattr(bytecode, "_CHUNK_FILES", 1)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("PYTHONHASHSEED", "4711")
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    monkeypatch.chdir(tmp_path)
    mask = os.umask(0o077)
    try:
        alone, _ = compiled(workers=1)
    finally:
        os.umask(mask)
    assert alone == first
    assert compiled(dict(reversed(SOURCES.items())), workers=3)[0] == first
    # a source compiled before in the same process must leave no trace: "*" is a name in one and a constant in the other
    assert compiled({"opt/plain.py": SOURCES["opt/plain.py"]})[0].items() <= first.items()


def test_what_layers_share_is_compiled_once_and_differences_stay_apart(monkeypatch):
    seen = []
    compile_chunk = bytecode._compile

    def record(interpreter, chunk, *rest):
        seen.extend(chunk)
        return compile_chunk(interpreter, chunk, *rest)

    monkeypatch.setattr(bytecode, "_compile", record)
    outputs = [io.BytesIO(), io.BytesIO()]
    writers = [LayerWriter(output) for output in outputs]
    amd64 = {"a.py": b"x = 1\n", "machine.py": b"m = 'x86_64'\n", "only.py": b""}
    arm64 = {"a.py": b"x = 1\n", "machine.py": b"m = 'aarch64'\n"}
    write_bytecode(OURS, [target(writers[0], amd64), target(writers[1], arm64)])
    for writer in writers:
        writer.close()
    one, other = map(contents, outputs)
    assert [(job.path, job.targets) for job in seen] == [
        ("a.py", (0, 1)),
        ("machine.py", (0,)),
        ("machine.py", (1,)),
        ("only.py", (0,)),
    ]
    assert one[pyc_path("a.py", MINOR)] == other[pyc_path("a.py", MINOR)]
    assert b"x86_64" in one[pyc_path("machine.py", MINOR)]
    assert b"aarch64" in other[pyc_path("machine.py", MINOR)]
    assert pyc_path("only.py", MINOR) not in other


def test_an_interpreter_that_fails_is_our_error():
    with pytest.raises(BuildError, match=r"can't compile a\.py to b\.py: it ended with 1: no loader"):
        write_bytecode(said("sys.exit('no loader')"), [target(LayerWriter(io.BytesIO()), TWO)])


def test_the_interpreter_is_started_through_its_own_loader():
    interpreter = Interpreter(
        root=Path("/cache/abc"),
        minor="3.11",
        program="usr/bin/python3.11",
        loader="usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        libraries=("usr/lib/x86_64-linux-gnu", "usr/lib"),
    )
    assert interpreter.command(["-S", Path("x.py")]) == [
        "/cache/abc/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        "--inhibit-cache",
        "--library-path",
        "/cache/abc/usr/lib/x86_64-linux-gnu:/cache/abc/usr/lib",
        "/cache/abc/usr/bin/python3.11",
        "-S",
        "x.py",
    ]
    assert interpreter.home == Path("/cache/abc/usr")


ANSWERS = {
    "nothing": b"",
    "too few": bytes(4),
    "too many": bytes(12),
    "cut": b"\x05\0\0\0abc" + bytes(4),
    "huge": b"\xff\xff\xff\xff" + bytes(8),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_is_not_one_piece_for_each_source_is_told(answer):
    with pytest.raises(BuildError, match=rf"wrote no bytecode for a\.py to b\.py: its {len(answer)} bytes are not"):
        write_bytecode(said(f"sys.stdout.buffer.write({answer!r})"), [target(LayerWriter(io.BytesIO()), TWO)])


def test_an_interpreter_can_not_fill_the_memory_or_the_disk(monkeypatch):
    monkeypatch.setattr(bytecode, "_ANSWER_BYTES", 1024 * 1024)
    endless = said("while True: sys.stdout.buffer.write(bytes(65536))")
    with pytest.raises(BuildError, match=r"can't compile a\.py to b\.py: the program wrote more than \d+ bytes"):
        write_bytecode(endless, [target(LayerWriter(io.BytesIO()), TWO)])


TWO = {"a.py": b"", "b.py": b""}


def said(program):
    """An interpreter that runs a program in the place of what it is given."""

    class Other(Ours):
        def command(self, arguments):
            return [sys.executable, "-c", "import sys\n" + program]

    return Other(root=Path("/"), minor=MINOR, program="x", loader="", libraries=())
