"""Dependency files, wheels' texts and index pages that are small and would be a long work: refused by their sizes, before they are parsed.

What each took before its bound: seconds, minutes or gigabytes. The figures of all targets are the soak test's (test_fuzzing).
"""

import io
import json
import warnings
import zipfile

import httpx
import pytest
from packaging.utils import InvalidWheelFilename
from tests.conftest import Shelf
from tests.unit import test_wheel_layer as samples

from flops.errors import DependencyError, IndexUnreachable, RequirementSyntax, StructureError, WheelRecord, WheelUnsafe
from flops.formats import bounded_reading, requirements
from flops.locking.index import Index
from flops.locking.pylock import parse_wheel_name
from flops.platforms import Platform
from flops.recipe import Recipe
from flops.repair import spelling
from flops.repository.source import parse_source
from flops.request import Request
from flops.settings import Settings
from flops.use_cases.check import check
from flops.wheels import archive as licences
from flops.wheels import provides
from flops.wheels.ranges import ByteSource
from flops.wheels.zip_directory import ZipError

AND = "python_version >= '3.8' and "
OWN = '[[package]]\nname = "own"\nversion = "0"\nsource = { virtual = "." }\n'


def lock(*lines, head="requires-python = '>=3.11'"):
    return "\n".join(["version = 1", head, OWN.strip(), *lines])


def pylock(*lines, head="requires-python = '>=3.11'"):
    return "\n".join(['lock-version = "1.0"', head, *lines])


def package(name="b", *lines):
    return "\n".join(["[[package]]", f"name = '{name}'", "version = '1'", "source = {registry = 'https://x'}", *lines])


#: File, text, the line that is named, and what is said of it.
LONG = {
    "a line": ("requirements.txt", "a\nb" + "c" * 20_000, 2, "a line has more than 16384"),
    "blanks": ("requirements.txt", "a\n\nb" + " " * 5000 + "c", 3, "more than 200 blanks"),
    "a requirement": ("requirements.txt", f"a\nb ; {AND * 200}os_name == 'x'", 2, "more than 1000 characters"),
    "parentheses": ("requirements.txt", "b ; " + "(" * 200 + "os_name=='x'" + ")" * 200, 1, "20 parentheses"),
    "requirements": ("requirements.txt", "".join(f"a{number}\n" for number in range(6000)), 5001, "more than 5000"),
    "a YAML value": ("conda.yaml", "dependencies:\n- a=" + "1" * 2000, 2, "more than 1000 characters"),
    "YAML values": ("conda.yaml", "dependencies:\n" + "- a\n" * 11_000, 9999, "more than 10000 values"),
    "YAML lists": ("conda.yaml", "dependencies:\n- " + "[" * 5000, 2, "more than 16 levels"),
    "YAML maps": ("conda.yaml", "dependencies:\n- " + "{a: " * 4000, 2, "more than 16 levels"),
    "YAML questions": ("conda.yaml", "dependencies:\n- " + "? " * 4000, 2, "more than 16 levels"),
    "a Python": ("python_env.yaml", f"a: b\npython: '>=3{'.1' * 1000}'", 2, "more than 1000 characters"),
    "Pythons": ("pyproject.toml", f"[project]\nrequires-python = '{'>=3,' * 500}'", 2, "more than 1000 characters"),
    "a marker of a project": (
        *("pyproject.toml", f"[project]\nname='x'\ndependencies = [\n\"x ; {AND * 300}os_name=='x'\"]"),
        *(4, "more than 1000 characters"),
    ),
    "TOML lists": ("pyproject.toml", "[project]\ndependencies = " + "[" * 100, 2, "more than 32 levels"),
    "TOML tables": ("pyproject.toml", "[project]\na = " + "{a=" * 100, 2, "more than 32 levels"),
    "a TOML key": ("pyproject.toml", "[project]\n" + "a." * 5000 + "a = 1", 2, "more than 32 levels"),
    "a quoted TOML key": ("pyproject.toml", "[project]\n" + "'a' . " * 2000 + "a = 1", 2, "more than 32 levels"),
    "a TOML header": ("uv.lock", lock("[" + "a." * 5000 + "a]"), 6 + 1, "more than 32 levels"),
    "TOML paths": ("uv.lock", lock("a = {" + ("b." * 30 + "c = {") * 3 + "}" * 4), 7, "more than 64 levels"),
    "TOML values": ("uv.lock", lock("x = [", "1,\n" * 130_000, "]"), 0, "more than 250000 values"),
    "parts of TOML keys": ("uv.lock", lock(*("b." * 30 + f"k{number} = 1" for number in range(2000))), 1673, "50000 parts"),
    "a lock's Pythons": ("uv.lock", lock(head=f"requires-python = '{'>=3,' * 500}'"), 2, "more than 1000 characters"),
    "a lock's marker": (
        *("uv.lock", lock("dependencies = [", f"{{name = 'b', marker = \"{AND * 200}os_name=='x'\"}}]", package())),
        *(8, "no marker, or none of a usual length"),
    ),
    "a lock's parentheses": ("uv.lock", lock(f"dependencies = [{{name = 'b', marker = '{'(' * 2000}'}}]", package()), 7, "no marker"),
    "a lock's markers": (
        *("uv.lock", lock("dependencies = [", *(f"{{name = 'b', marker = \"os_name=='{n:01000}'\"}}," for n in range(200)), "]", package())),
        *(137, "more than 131072 characters"),
    ),
    "a lock's dependencies": ("uv.lock", lock("dependencies = [", "{name = 'b'},\n" * 21_000, "]", package()), 20_008, "more than 20000"),
    "a lock's extras": (
        *("uv.lock", lock("dependencies = [{name = 'b', extra = [" + "'e'," * 21_000 + "]}]", package())),
        *(7, "more than 20000"),
    ),
    "a lock's forks": ("uv.lock", lock(*[package()] * 30), 0, "more than 20 versions of b"),
    "a pylock's marker": (
        *("pylock.toml", pylock("[[packages]]", 'name = "a"', 'version = "1"', f'marker = "{AND * 200}os_name == \'x\'"')),
        *(6, "no marker, or none of a usual length"),
    ),
    "a package's Pythons": (
        *("pylock.toml", pylock("[[packages]]", 'name = "a"', 'version = "1"', f'requires-python = "{">=3," * 100}"')),
        *(3, "no specifier"),
    ),
    "groups in groups": (
        *("pyproject.toml", "[project]\nname='x'\ndependencies=['x[g0]']\n[project.optional-dependencies]\n"),
        *(0, "more than 100 groups"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_what_would_be_a_long_work_is_refused_with_its_line(name):
    path, text, line, told = LONG[name]
    if name == "groups in groups":
        text += "".join(f"g{number} = ['x[g{number + 1}]']\n" for number in range(400))
        line = 104
    with pytest.raises(RequirementSyntax) as caught:
        requirements.read({path: text.encode()})
    finding = next(one for one in caught.value.findings if told in one.message)
    assert (finding.path, finding.line) == (path, line)
    assert finding.hint


@pytest.mark.parametrize(("limit", "text"), [(1000, "b=={}"), (16_384, "# {}")])
def test_what_has_just_its_limit_is_read(limit, text):
    line = text.format("1" * (limit - len(text) + 2))
    assert len(line) == limit
    assert requirements.read({"requirements.txt": f"a\n{line}\n".encode()}).path == "requirements.txt"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("requirements.txt", "numpy" + " " * 200_000 + "x"),
        ("requirements.txt", "numpy " + "!@" * 450 + "\n"),
        ("conda.yaml", "a: " + "{a: " * 3000),
        ("conda.yaml", "dependencies:\n- " + "{a: " * 300),
        ("pyproject.toml", "[project]\ndependencies = [" + "[" * 5000),
    ],
)
def test_what_may_be_meant_is_not_looked_for_without_end(path, text):
    """Searching a line of 200,000 blanks took minutes, and a map in maps was a fault of ours."""
    files = {path: text.encode()}
    with pytest.raises(DependencyError) as caught:
        requirements.read(files)
    explained = spelling.explained(caught.value, files, requirements.read)
    assert explained.findings
    assert explained.repairs == ()


# --- the child in which all of it is read first -------------------------------------------------------------------------
def test_a_reader_that_needs_too_much_ends_alone_and_is_told_by_its_file(tmp_path, monkeypatch):
    text = lock(*(f"[t{number}]" for number in range(80_000)))
    (tmp_path / "uv.lock").write_text(text)
    (tmp_path / "requirements.txt").write_text("numpy\n")
    paths = ["uv.lock", "requirements.txt"]
    bounded_reading.rehearse(tmp_path, paths, groups=(), platforms=tuple(Platform))
    monkeypatch.setattr(bounded_reading, "MEMORY", 64 * 1024**2)
    with pytest.raises(RequirementSyntax, match=r"uv.lock: reading it takes more memory") as caught:
        bounded_reading.rehearse(tmp_path, paths, groups=(), platforms=tuple(Platform))
    assert [finding.path for finding in caught.value.findings] == ["uv.lock"]
    bounded_reading.rehearse(tmp_path, ["requirements.txt"], groups=(), platforms=tuple(Platform))


def test_a_check_reads_there_first(tmp_path, monkeypatch):
    place = tmp_path / "project"
    place.mkdir()
    (place / "model_manager.py").write_text("class ModelManager: ...\n")
    (place / "uv.lock").write_text(lock(*(f"[t{number}]" for number in range(80_000))))
    monkeypatch.setattr(bounded_reading, "MEMORY", 64 * 1024**2)
    settings = Settings(cache_dir=tmp_path / "cache")
    with pytest.raises(StructureError) as caught:
        check(Request(source=parse_source(str(place)), platforms=(*Platform,), recipe=Recipe()), settings=settings)
    told = {finding.path: finding.message for finding in caught.value.findings}
    assert "memory" in told["uv.lock"]
    assert "model_manager.py" in told


def test_a_library_in_the_repository_is_not_the_childs(tmp_path, monkeypatch):
    """Started with `python -m` in a repository, this process looks for modules there."""
    canary = tmp_path / "canary"
    for name in ("yaml", "packaging", "flops", "json"):
        (tmp_path / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')\n")
    (tmp_path / "requirements.txt").write_text("numpy\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    bounded_reading.rehearse(tmp_path, ["requirements.txt"], groups=(), platforms=tuple(Platform))
    assert not canary.exists()


# --- what an index and its wheels say -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["b-1-py3-none-" + ".".join(f"a{n}" for n in range(101)) + ".whl", "b-1-py3-none-any" + "y" * 300 + ".whl", "b-1-" + "-".join(".".join(f"{letter}{n}" for n in range(9)) for letter in "pna") + ".whl"],
)  # fmt: skip
def test_a_wheels_name_stands_for_a_number_of_tags(name):
    with pytest.raises(InvalidWheelFilename):
        parse_wheel_name(name)
    assert len(parse_wheel_name("b-1-py2.py3-none-manylinux1_x86_64.manylinux2014_x86_64.whl")[3]) == 4


@pytest.mark.parametrize(
    ("kind", "page"),
    [
        ("json", b'{"files": ' + b"[" * 100_000),
        ("json", json.dumps({"files": [{}] * 100_001}).encode()),
        ("text/html", b'<a href="x">' * 100_001),
    ],
)
def test_a_page_of_the_index_is_no_endless_list(kind, page):
    answer = httpx.MockTransport(lambda _: httpx.Response(200, content=page, headers={"content-type": kind}))
    with Index("https://127.0.0.1/simple/", transport=answer) as index, pytest.raises(IndexUnreachable):
        index.project("plain")


@pytest.mark.parametrize("row", ["x/,,\n", "demo/{},,\n"])
def test_a_record_has_no_more_rows_than_its_wheel_needs(tmp_path, row):
    source = samples.wheel(
        tmp_path, {"a.py": b""}, record=lambda rows: [*rows, *(row.format(n).strip() for n in range(1100))]
    )
    with pytest.raises(WheelRecord, match="more rows than it has files"):
        samples.build(source)
    source = samples.wheel(tmp_path, {"a.py": b""}, record=lambda rows: [*rows, "x" * 300_000 + ",,"])
    with pytest.raises(WheelRecord, match="more bytes than its files can need"):
        samples.build(source)


def test_entry_points_without_end_are_refused(tmp_path):
    many = "[console_scripts]\n" + "".join(f"s{number} = a:b\n" for number in range(1001))
    for text, told in ((many, "more than 1000 entry points"), ("#" * (1 << 20) + "\n", "too large for its purpose")):
        with pytest.raises(WheelUnsafe, match=told):
            samples.build(samples.wheel(tmp_path, {"a.py": b"", "demo-1.0.dist-info/entry_points.txt": text.encode()}))


def test_metadata_without_end_is_refused_and_long_lines_of_it_are_left_out():
    def source(metadata):
        data = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("demo-1.0.dist-info/METADATA", metadata)
        raw = data.getvalue()
        return ByteSource(lambda offset, size: raw[offset : offset + size], len(raw))

    with pytest.raises(ZipError, match="before its description"):
        provides._read_requires(source("a: b\n" * 300_000))
    lines = ["numpy", f"torch; {AND * 300}os_name=='x'", "scipy"]
    text = "".join(f"Requires-Dist: {line}\n" for line in lines) + "\n" + "a: b\n" * 300_000
    assert provides._read_requires(source(text)) == ["numpy", "scipy"]
    assert licences.licence(b"License: MIT\n" + b"a: b\n" * 800_000) == "MIT"


def test_a_package_of_the_index_leads_uv_to_no_other_host(tmp_path, shelf, locker):
    """What a wheel's metadata ask for by a URL is refused, unasked, whatever the index's owner let in."""
    other = Shelf(tmp_path / "other")
    asked = []
    other.server.process_request = lambda _, address: asked.append(address)
    shelf.add("plain", "1.0")
    shelf.add("leads", "1.0", f"plain @ {other.url}/plain-1.0-py3-none-any.whl")
    shelf.add("away", "1.0", "git-thing @ git+https://127.0.0.1/x.git")
    wanted = {"platform": Platform.LINUX_AMD64, "python": "3.11.2", "glibc": (2, 36)}
    try:
        assert locker.lock(["plain"], **wanted).wheels
        for name in ("leads", "away"):
            with pytest.raises(DependencyError):
                locker.lock([name], **wanted)
    finally:
        other.stop()
    assert asked == []
