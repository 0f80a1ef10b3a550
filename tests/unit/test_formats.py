"""pyproject.toml, python_env.yaml, pylock.toml and uv.lock: what they say, and at which line."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import tomllib
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.markers import Marker
from packaging.requirements import Requirement as Pep508

from flops.errors import FlopsError, NeedsBuild, RequirementForbidden, RequirementSyntax, UsageError, WheelHash
from flops.formats import lockfiles, requirements, toml_document
from flops.formats.lockfiles import Environment, Grid, holds
from flops.formats.requirement import FileHash
from flops.locking.lock import Locker
from flops.locking.pylock import LockTarget
from flops.platforms import Platform
from flops.progress import Silent
from flops.recipe import Policy, Recipe
from flops.repair import lock_findings
from flops.repair.pythons import PythonChoice
from flops.repair.resolve import LockRequest, lock_requirements, use_own_lock

AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64
BOOKWORM = PythonChoice(version="3.11.2", minor="3.11", glibc=(2, 36), provider="debian", suite="bookworm")
TRIXIE = PythonChoice(version="3.13.5", minor="3.13", glibc=(2, 41), provider="debian", suite="trixie")
SHA = "0123456789abcdef" * 4


def read(text, name="pyproject.toml", *, groups=(), platforms=tuple(Platform), **others):
    files = {name: text.encode()} | {path: data.encode() for path, data in others.items()}
    return requirements.read(files, groups=groups, platforms=platforms)


def places(found):
    return [(entry.pep508, entry.where) for entry in found.entries]


def codes(notes):
    return [f"{note.where} {note.code}" for note in notes]


def problems(kind, text, name="pyproject.toml", **options):
    with pytest.raises(kind) as caught:
        read(text, name, **options)
    assert all(finding.hint for finding in caught.value.findings)
    return codes(caught.value.findings)


# --- TOML -------------------------------------------------------------------------------------------------------------
def every(value, path=()):
    """Each key and index of a document, as a path."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from every(one, (*path, key))


DOCUMENT = '''\
# comment
top = 1 # x = [
"quoted.key" = "a # b"
dotted.key = 'lit]eral'
[a]
list = [ "x", # one
  "y", { z = "}" },
  [1,
   2],
]
long = """
[not.a.table]
x = 1 \\""" """"
after = 1979-05-27 07:32:00
lines = \'\'\'
"""\'\'\'
[a.b."c d"]
e = { f.g = 1, h = [ ] }
[[many]]
n = 1
[many.inner]
k = 1
[[many.deep]]
d = 1
[[many.deep]]
d = 2
[[many]]
n = 2
[[many.deep]]
d = 3
'''


def test_every_value_of_a_document_has_its_line():
    root = tomllib.loads(DOCUMENT)
    lines = toml_document.scan(DOCUMENT)
    assert set(lines) == set(every(root))
    rows = DOCUMENT.splitlines()
    found = {
        ("quoted.key",): '"quoted.key"',
        ("dotted", "key"): "dotted.key",
        ("a", "list", 0): "list",
        ("a", "list", 1): '  "y"',
        ("a", "list", 2, "z"): '  "y"',
        ("a", "list", 3, 1): "   2]",
        ("a", "after"): "after",
        ("a", "b", "c d", "e", "f", "g"): "e =",
        ("many", 0, "inner", "k"): "k = 1",
        ("many", 1, "n"): "n = 2",
        ("many", 1, "deep", 0, "d"): "d = 3",
    }
    missing = {path: text for path, text in found.items() if not rows[lines[path] - 1].startswith(text)}
    assert not missing


keys = st.sampled_from(["a", "b", "a.b", '"a b"', "'c'", '"\\u00e9"', "d . e"])
values = st.recursive(
    st.sampled_from(
        ["1", "true", '"x"', "'#'", '"\\""', '"""\n"a" """', "'''\n''''", "1979-05-27", "2.5e3", '""', '"]}"']
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: "[ # c\n" + ",\n".join(items) + "\n]")
        | st.lists(inner, max_size=3).map(lambda i: "{" + ", ".join(f"k{n}.z = {v}" for n, v in enumerate(i)) + "}")
    ),
    max_leaves=6,
)
rows = st.builds("{} = {}".format, keys, values) | st.builds("[{}]".format, keys) | st.builds("[[{}]]".format, keys)


@settings(max_examples=300)
@given(st.lists(rows | st.sampled_from(["", "# x", "\r"]), max_size=8).map("\n".join))
def test_places_are_those_of_the_values(text):
    try:
        root = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = toml_document.scan(text)
    assert set(every(root)) <= set(lines)
    closed = toml_document.scan(text, frozenset({"a", "c"}))
    assert closed.items() <= lines.items()
    assert all(path in closed for path in lines if not {"a", "c"} & set(path[:-1]))
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
    assert all(line >= lines.get(path[:-1], 0) or path[:-1] in lines for path, line in lines.items())


@pytest.mark.parametrize(
    ("text", "line"),
    [("[project]\nname = \n", 2), ("[project\n", 1), ('a = "x\n', 1), ("a = [" + "[" * 10_000, 1), ("x", 1)],
)
def test_what_is_no_toml_says_where(text, line):
    for name in ("pyproject.toml", "pylock.toml", "uv.lock"):
        with pytest.raises(RequirementSyntax) as caught:
            read(text, name)
        assert [finding.line for finding in caught.value.findings] == [line]


# --- pyproject.toml ---------------------------------------------------------------------------------------------------
PROJECT = """\
[project]
name = "Digits"
version = "1"
requires-python = ">=3.10,<3.13"
dependencies = [
    "numpy==1.26.4",
    "scikit_learn[plots] >= 1.4 ; python_version < '3.13'",  # comment
]

[project.optional-dependencies]
gpu = ["torch==2.1.1+cu118"]
all = ["digits[gpu]", "pandas"]

[dependency-groups]
dev = ["pytest", { include-group = "Typing_Group" }]
typing-group = [
    "mypy",
]

[tool.uv]
dev-dependencies = ["black"]
[tool.uv.sources]
torch = { index = "pytorch" }
[[tool.uv.index]]
name = "pytorch"
url = "https://index.example/simple"
"""


def test_a_project():
    found = read(PROJECT)
    assert places(found) == [
        ("numpy==1.26.4", "pyproject.toml:6"),
        ('scikit-learn[plots]>=1.4 ; python_version < "3.13"', "pyproject.toml:7"),
    ]
    assert (found.python.specifier, found.python.line) == (">=3.10,<3.13", 4)
    assert codes(found.notes) == [
        "pyproject.toml:10 GROUP_NOT_TAKEN",
        "pyproject.toml:14 GROUP_NOT_TAKEN",
        "pyproject.toml:24 TOOL_IGNORED",
        "pyproject.toml:22 TOOL_IGNORED",
    ]
    assert "gpu, all" in found.notes[0].message
    assert not found.complete


@pytest.mark.parametrize(
    ("groups", "added"),
    [
        (["dev"], [("pytest", 15), ("mypy", 17)]),
        (["typing_group", "dev"], [("mypy", 17), ("pytest", 15)]),
        (["gpu"], [("torch==2.1.1", 11)]),
        (["all"], [("torch==2.1.1", 11), ("pandas", 12)]),
    ],
)
def test_groups_that_are_asked_for(groups, added):
    found = read(PROJECT, groups=groups)
    assert places(found)[2:] == [(text, f"pyproject.toml:{line}") for text, line in added]
    unread = [note.message for note in found.notes if note.code == "GROUP_NOT_TAKEN"]
    assert not [name for name in groups for message in unread if name in message.split(": ")[1].split(", ")]


def test_a_group_that_is_not_there():
    with pytest.raises(UsageError) as caught:
        read(PROJECT, groups=["test"])
    assert caught.value.hint == "it has all, dev, gpu, typing-group"
    with pytest.raises(UsageError, match=r"requirements\.txt"):
        read("numpy", "requirements.txt", groups=["dev"])
    with pytest.raises(UsageError):
        read('[dependency-groups]\n"${x} y" = []\n', groups=["dev"])


def test_groups_alone_are_a_dependency_file_when_they_are_asked_for():
    text = '[dependency-groups]\ntrain = ["numpy"]\n'
    assert places(read(text, groups=["train"])) == [("numpy", "pyproject.toml:2")]
    with pytest.raises(FlopsError, match="no dependency file"):
        read(text)


def test_settings_of_tools_alone_are_no_dependency_file():
    found = read("numpy\n", "requirements.txt", **{"pyproject.toml": "[tool.ruff]\nline-length = 1\n"})
    assert found.notes == ()
    with pytest.raises(FlopsError, match="no dependency file"):
        read("[tool.ruff]\n[tool.poetry]\nname='x'\n")


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (NeedsBuild, '[project]\nname = "a"\ndynamic = [\n"version",\n"dependencies"]\n', ["3 NEEDS_BUILD"]),
        (RequirementSyntax, "[tool.poetry.dependencies]\npython = '^3.9'\nnumpy = '^1.2'\n", ["1 REQUIREMENT_SYNTAX"]),
        (
            RequirementForbidden,
            '[project]\ndependencies = [\n"x @ https://h.example/x.whl", "a",\n"y @ git+https://h.example/y",\n"${A}",\n"z ==",\n]',
            ["3 REQUIREMENT_FORBIDDEN", "4 REQUIREMENT_FORBIDDEN", "5 REQUIREMENT_FORBIDDEN", "6 REQUIREMENT_SYNTAX"],
        ),
        (RequirementSyntax, '[project]\nrequires-python = "three"\n', ["2 REQUIREMENT_SYNTAX"]),
        (RequirementSyntax, '[project]\ndependencies = "numpy"\n', ["2 REQUIREMENT_SYNTAX"]),
        (RequirementSyntax, "[project]\ndependencies = [1, []]\n", ["2 REQUIREMENT_SYNTAX"]),
        (RequirementSyntax, "project = 3\n", ["1 REQUIREMENT_SYNTAX"]),
        (RequirementSyntax, '[project]\nname = "a"\ndependencies = ["a[b]"]\n', ["3 REQUIREMENT_SYNTAX"]),
    ],
)
def test_projects_that_can_not_be_used(kind, text, expected):
    assert problems(kind, text) == [f"pyproject.toml:{line}" for line in expected]


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ('[{include-group = "b"}]', "2"),
        ('["numpy", {include = "a"}]', "2"),
        ('["numpy", 1]', "2"),
        ('[\n{include-group = "a"},\n"not a requirement"]', "4"),
    ],
)
def test_groups_that_can_not_be_used(group, expected):
    text = f"[dependency-groups]\na = {group}\n"
    assert problems(RequirementSyntax, text, groups=["a"]) == [f"pyproject.toml:{expected} REQUIREMENT_SYNTAX"]


@settings(max_examples=150)
@given(
    st.lists(
        st.sampled_from(
            [
                "[project]",
                "[dependency-groups]",
                'a = ["numpy"]',
                'name = "a"',
                'dependencies = ["a[b]", "x"]',
                "b = 1",
                'a = [{include-group = "a"}]',
                "requires-python = '>=3'",
                "[project.optional-dependencies]",
                "dynamic = []",
            ]
        ),
        max_size=8,
    ).map("\n".join)
)
def test_any_project_gives_requirements_or_findings(text):
    try:
        found = read(text, groups=["a"])
    except FlopsError:
        return
    assert all(Pep508(entry.pep508) and entry.line for entry in found.entries)


# --- python_env.yaml --------------------------------------------------------------------------------------------------
def test_what_mlflow_writes():
    text = "python: 3.10\nbuild_dependencies:\n- pip==24.0\n- setuptools\ndependencies:\n- -r requirements.txt\n- scipy==1.13.0\n"
    found = read(text, "python_env.yaml", **{"requirements.txt": "mlflow==2.12.1\nnumpy==1.26.4\n"})
    assert places(found) == [("numpy==1.26.4", "requirements.txt:2"), ("scipy==1.13.0", "python_env.yaml:7")]
    assert (found.python.text, found.python.specifier, found.python.line) == ("3.10", "==3.10.*", 1)
    assert codes(found.notes) == ["python_env.yaml:2 KEY_IGNORED"]
    assert [change.where for change in found.adjustments] == ["requirements.txt:1"]
    assert read("python: '3.10.14'\n", "python_env.yaml").python.specifier == "==3.10.14"
    assert read("python: '>=3.9'\n", "python_env.yaml").python.specifier == ">=3.9"
    assert read("python:\ndependencies:\n", "python_env.yaml").python is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("python: [3]\n", 1),
        ("python: three\n", 1),
        ("dependencies: numpy\n", 1),
        ("dependencies:\n- {a: b}\n", 2),
        ("- a", 0),
    ],
)
def test_python_env_that_can_not_be_used(text, line):
    where = f"python_env.yaml:{line}" if line else "python_env.yaml"
    assert problems(RequirementSyntax, text, "python_env.yaml") == [f"{where} REQUIREMENT_SYNTAX"]


# --- markers of locks -------------------------------------------------------------------------------------------------
MARKERS = [
    "python_version < '3.11'",
    "python_full_version >= '3.11.4'",
    "platform_machine == 'aarch64'",
    "sys_platform == 'win32'",
    "python_full_version <= '3.12.0a6' and platform_machine != 'aarch64'",
    "'3.12' <= python_version",
    "python_version == '3.13.*' or implementation_name == 'pypy'",
]


@given(
    st.sampled_from(MARKERS),
    st.sampled_from(["", ">=3.11", ">=3.10,<3.13", "==3.12.*", "~=3.11.3"]),
    st.sampled_from([(AMD64, ARM64), (ARM64,)]),
    st.tuples(st.integers(8, 15), st.integers(0, 12)),
)
def test_a_marker_that_is_made_says_what_the_lock_said(marker, requires, platforms, numbers):
    grid = Grid.over(platforms, MARKERS, requires)
    made = grid.marker({one for one in grid.environments if holds(marker, one)})
    python = "3.{}.{}".format(*numbers)
    first, last = (tuple(map(int, grid.pythons[end].split("."))) for end in (0, -1))
    if not first <= (3, *numbers) or (3, *numbers)[:2] > last[:2]:
        return
    allowed = Pep508(f"x{requires}").specifier
    for platform in platforms:
        environment = LockTarget(platform=platform, python=python, glibc=(2, 36)).marker_environment
        reached = not made or Marker(made).evaluate(environment)
        nothing = not any(holds(marker, one) for one in grid.environments)
        if python in allowed and not nothing:
            assert reached == Marker(marker).evaluate(environment), (made, python)


def test_a_lock_with_versions_without_end_is_refused():
    many = [f"python_full_version < '3.11.{patch}'" for patch in range(200)]
    with pytest.raises(ValueError):
        Grid.over((AMD64,), many, "")
    assert Environment(AMD64, "3.11.5") in Grid.over((AMD64,), many[:6], "").environments


# --- locks ------------------------------------------------------------------------------------------------------------
def wheel_entry(name, version, tag="py3-none-any", sha=SHA):
    file = f"{name.replace('-', '_')}-{version}-{tag}.whl"
    return (
        f'{{ url = "https://files.example/{file}", hash = "sha256:{sha}", hashes = {{ sha256 = "{sha}" }}, size = 7 }}'
    )


def pylock(*packages, head=""):
    """Packages: (name, version, wheels, more)."""
    text = f'lock-version = "1.0"\ncreated-by = "test"\n{head}\n'
    for name, version, wheels, more in packages:
        text += f'[[packages]]\nname = "{name}"\nversion = "{version}"\n{more}\nwheels = [{", ".join(wheels)}]\n'
    return text


X86 = "cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64"
ARM = "cp311-cp311-manylinux_2_17_aarch64"


def test_a_pylock_is_the_whole_where_it_covers_every_platform():
    text = pylock(
        ("numpy", "1.26.4", [wheel_entry("numpy", "1.26.4", X86), wheel_entry("numpy", "1.26.4", ARM)], ""),
        ("tomli", "2.0.1", [wheel_entry("tomli", "2.0.1")], "marker = \"python_version < '3.11'\""),
        ("win", "1", [wheel_entry("win", "1")], "marker = \"sys_platform == 'win32'\""),
        ("old", "1", [wheel_entry("old", "1")], "requires-python = '<3.8'"),
        head="requires-python = '>=3.10'",
    )
    found = read(text, "pylock.toml")
    assert found.complete
    assert places(found) == [
        ("numpy==1.26.4", "pylock.toml:4"),
        ('tomli==2.0.1 ; python_full_version < "3.11.0"', "pylock.toml:9"),
    ]
    assert codes(found.notes) == []
    assert found.python.specifier == ">=3.10"
    assert {file.filename for file in found.entries[0].hashes} == {f"numpy-1.26.4-{tag}.whl" for tag in (X86, ARM)}


def test_a_pylock_without_a_platform_keeps_its_versions():
    text = pylock(
        ("a", "1", [wheel_entry("a", "1")], ""),
        ("numpy", "1.26.4", [wheel_entry("numpy", "1.26.4", X86)], ""),
        (
            "musl",
            "1",
            [wheel_entry("musl", "1", X86), wheel_entry("musl", "1", "cp311-cp311-musllinux_1_1_aarch64")],
            "",
        ),
    )
    found = read(text, "pylock.toml")
    assert not found.complete
    assert [entry.pep508 for entry in found.entries] == ["a==1", "numpy==1.26.4", "musl==1"]
    assert codes(found.notes) == ["pylock.toml:9 LOCK_PLATFORM_MISSING"]
    assert "numpy 1.26.4 and 1 more have no wheel for linux/arm64" in found.notes[0].message
    assert read(text, "pylock.toml", platforms=[AMD64]).complete
    named = pylock(("a", "1", [wheel_entry("a", "1")], ""), head="environments = [\n\"platform_machine == 'x86_64'\"]")
    assert codes(read(named, "pylock.toml").notes) == ["pylock.toml:3 LOCK_PLATFORM_MISSING"]
    assert read(named, "pylock.toml", platforms=[AMD64]).complete


def test_groups_and_extras_of_a_pylock():
    head = "extras = ['gpu']\ndependency-groups = ['dev', 'base']\ndefault-groups = ['base']"
    text = pylock(
        ("a", "1", [wheel_entry("a", "1")], "marker = \"'base' in dependency_groups\""),
        ("b", "1", [wheel_entry("b", "1")], "marker = \"'gpu' in extras\""),
        ("c", "1", [wheel_entry("c", "1")], "marker = \"'dev' in dependency_groups\""),
        head=head,
    )
    assert [entry.name for entry in read(text, "pylock.toml").entries] == ["a"]
    assert [entry.name for entry in read(text, "pylock.toml", groups=["GPU"]).entries] == ["a", "b"]
    assert [entry.name for entry in read(text, "pylock.toml", groups=["dev"]).entries] == ["a", "c"]
    with pytest.raises(UsageError):
        read(text, "pylock.toml", groups=["x"])


@pytest.mark.parametrize(
    ("kind", "entry", "line"),
    [
        (RequirementForbidden, 'name = "a"\nvcs = { type = "git", url = "https://h.example/a", commit-id = "0" }', 2),
        (RequirementForbidden, 'name = "a"\ndirectory = { path = "." }', 2),
        (RequirementForbidden, 'name = "a"\narchive = { url = "https://h.example/a.zip" }', 2),
        (RequirementForbidden, 'name = "a"\nversion = "1"\nwheels = [{ path = "a-1-py3-none-any.whl" }]', 2),
        (RequirementForbidden, 'name = "a"\nversion = "1"\nwheels = [{ url = "file:///a-1-py3-none-any.whl" }]', 2),
        (RequirementSyntax, 'name = "a"\nversion = "1"\nwheels = [{ url = "https://h.example/a.exe" }]', 2),
        (RequirementSyntax, 'name = "a"\nversion = "1"\nmarker = "python is nice"', 5),
        (RequirementSyntax, 'name = "a"\nversion = "one"', 2),
        (RequirementSyntax, 'name = "a @ https://h.example"\nversion = "1"', 2),
        (RequirementSyntax, 'name = "a"\nversion = "1"\nrequires-python = "three"', 2),
    ],
)
def test_pylocks_that_can_not_be_used(kind, entry, line):
    text = f'lock-version = "1.0"\n[[packages]]\n{entry}\n'
    assert problems(kind, text, "pylock.toml") == [f"pylock.toml:{line} {kind.code}"]


def test_a_later_version_of_the_format_is_refused():
    assert problems(RequirementSyntax, 'lock-version = "2.0"', "pylock.toml") == ["pylock.toml:1 REQUIREMENT_SYNTAX"]
    assert problems(RequirementSyntax, "\nversion = 9", "uv.lock") == ["uv.lock:2 REQUIREMENT_SYNTAX"]


UV_PROJECT = """\
[project]
name = "digits"
version = "0.1"
requires-python = ">=3.11"
dependencies = ["numpy", "app[fast]==1.0", "mlflow==2"]

[dependency-groups]
dev = ["pytest"]
"""
UV_LOCK = f"""\
version = 1
revision = 3
requires-python = ">=3.11"
resolution-markers = ["python_full_version >= '3.12'", "python_full_version < '3.12'"]

[[package]]
name = "digits"
version = "0.1"
source = {{ virtual = "." }}
dependencies = [
    {{ name = "numpy", version = "1.26.4", source = {{ registry = "https://index.example/simple" }}, marker = "python_full_version < '3.12'" }},
    {{ name = "numpy", version = "2.1.0", source = {{ registry = "https://index.example/simple" }}, marker = "python_full_version >= '3.12'" }},
    {{ name = "app", extra = ["fast"] }},
    {{ name = "mlflow" }},
]

[package.dev-dependencies]
dev = [{{ name = "pytest" }}]

[package.metadata]
requires-dist = [
    {{ name = "app", extras = ["fast"], specifier = "==1.0" }},
    {{ name = "mlflow", specifier = "==2" }},
    {{ name = "numpy" }},
]

[package.metadata.requires-dev]
dev = [{{ name = "pytest" }}]

[[package]]
name = "app"
version = "1.0"
source = {{ registry = "https://index.example/simple" }}
dependencies = [{{ name = "colorama", marker = "sys_platform == 'win32'" }}, {{ name = "numpy", version = "1.26.4", marker = "python_full_version < '3.12'" }}]
wheels = [{wheel_entry("app", "1.0")}]

[package.optional-dependencies]
fast = [{{ name = "speed", marker = "platform_machine == 'x86_64'" }}]

[[package]]
name = "colorama"
version = "0.4"
source = {{ registry = "https://index.example/simple" }}

[[package]]
name = "flask"
version = "3"
source = {{ registry = "https://index.example/simple" }}

[[package]]
name = "mlflow"
version = "2"
source = {{ registry = "https://index.example/simple" }}
dependencies = [{{ name = "flask" }}]

[[package]]
name = "numpy"
version = "1.26.4"
source = {{ registry = "https://index.example/simple" }}
resolution-markers = ["python_full_version < '3.12'"]
wheels = [
    {wheel_entry("numpy", "1.26.4", X86)},
    {wheel_entry("numpy", "1.26.4", ARM)},
]

[[package]]
name = "numpy"
version = "2.1.0"
source = {{ registry = "https://index.example/simple" }}
resolution-markers = ["python_full_version >= '3.12'"]
wheels = [{wheel_entry("numpy", "2.1.0", "cp312-cp312-manylinux_2_17_x86_64")}, {wheel_entry("numpy", "2.1.0", "cp312-cp312-manylinux_2_17_aarch64")}]

[[package]]
name = "pytest"
version = "8"
source = {{ registry = "https://index.example/simple" }}
wheels = [{wheel_entry("pytest", "8")}]

[[package]]
name = "speed"
version = "3"
source = {{ registry = "https://other.example/simple" }}
wheels = [{wheel_entry("speed", "3", X86)}]
"""


def line_of(text, start):
    return next(number for number, line in enumerate(text.splitlines(), 1) if line.startswith(start))


def test_a_uv_lock_is_what_the_project_reaches():
    found = read(UV_LOCK, "uv.lock", **{"pyproject.toml": UV_PROJECT})
    assert found.complete
    assert [entry.pep508 for entry in found.entries] == [
        "app==1.0",
        'numpy==1.26.4 ; python_full_version < "3.12.0"',
        'numpy==2.1.0 ; python_full_version >= "3.12.0"',
        'speed==3 ; platform_machine == "x86_64"',
    ]
    rows = UV_LOCK.splitlines()
    assert all(rows[entry.line] == f'name = "{entry.name}"' for entry in found.entries)
    assert [(change.code, change.package, change.before) for change in found.adjustments] == [
        ("REMOVED", "mlflow", "==2")
    ]
    assert found.python.path == "pyproject.toml"
    speed = line_of(UV_LOCK, 'source = { registry = "https://other')
    assert codes(found.notes) == [
        "pyproject.toml:7 GROUP_NOT_TAKEN",
        f"uv.lock:{speed} LOCK_INDEX_IGNORED",
    ]
    alone = read(UV_LOCK, "uv.lock")
    assert alone.entries == found.entries
    assert alone.python.path == "uv.lock"


def test_groups_of_a_uv_lock():
    found = read(UV_LOCK, "uv.lock", groups=["dev"], **{"pyproject.toml": UV_PROJECT})
    assert "pytest==8" in [entry.pep508 for entry in found.entries]
    with pytest.raises(UsageError, match="no group 'test'"):
        read(UV_LOCK, "uv.lock", groups=["test"])


def test_a_uv_lock_that_the_project_has_left_behind():
    changed = UV_PROJECT.replace('"numpy"', '"numpy<2"')
    found = read(UV_LOCK, "uv.lock", **{"pyproject.toml": changed})
    assert found.path == "pyproject.toml"
    assert not found.complete
    assert [entry.pep508 for entry in found.entries] == ["numpy<2", "app[fast]==1.0"]
    assert sorted(codes(found.notes)) == [
        "pyproject.toml:7 GROUP_NOT_TAKEN",
        f"uv.lock:{line_of(UV_LOCK, '[[package]]')} LOCK_STALE",
    ]
    grown = UV_PROJECT.replace('"pytest"', '"pytest", "black"')
    assert read(UV_LOCK, "uv.lock", **{"pyproject.toml": grown}).complete
    assert not read(UV_LOCK, "uv.lock", groups=["dev"], **{"pyproject.toml": grown}).complete


def test_a_lock_knows_what_only_the_build_backend_would_tell():
    project = "[project]\nname = 'digits'\nversion = '1'\ndynamic = ['dependencies']\n"
    assert read(UV_LOCK, "uv.lock", **{"pyproject.toml": project}).complete


def test_a_uv_lock_with_a_package_of_the_repository():
    text = UV_LOCK.replace('{ name = "mlflow" }', '{ name = "inner" }')
    text += '[[package]]\nname = "inner"\nversion = "1"\nsource = { editable = "inner" }\n'
    assert problems(RequirementForbidden, text, "uv.lock") == [
        f"uv.lock:{len(text.splitlines()) - 3} REQUIREMENT_FORBIDDEN"
    ]
    text = UV_LOCK.replace('{ virtual = "." }', '{ virtual = "elsewhere" }')
    assert problems(RequirementSyntax, text, "uv.lock") == ["uv.lock REQUIREMENT_SYNTAX"]
    text = UV_LOCK.replace('{ name = "mlflow" }', '{ name = "nowhere" }')
    assert problems(RequirementSyntax, text, "uv.lock") == ["uv.lock REQUIREMENT_SYNTAX"]


def test_a_lock_with_more_packages_than_anybody_has():
    text = "version = 1\n" + '[[package]]\nname = "a"\nversion = "1"\n' * (lockfiles.PACKAGES + 1)
    assert "uv.lock REQUIREMENT_SYNTAX" in problems(RequirementSyntax, text, "uv.lock")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, len(UV_LOCK)), st.integers(0, 40), st.sampled_from(["", "[", '"', "1", "x = 1\n", "[[package]]\n"])
)
def test_a_damaged_lock_gives_requirements_or_findings(start, length, inserted):
    text = UV_LOCK[:start] + inserted + UV_LOCK[start + length :]
    for name, data in (("uv.lock", text), ("pylock.toml", text.replace("version = 1", 'lock-version = "1.0"'))):
        found, error = None, None
        try:
            found = read(data, name)
        except FlopsError as caught:
            error = caught
        assert error.findings if error else all(Pep508(entry.pep508) for entry in found.entries)


# --- hashes in requirements.txt ---------------------------------------------------------------------------------------
def test_hashes_are_carried():
    text = f"numpy==1.26.4 --hash=sha256:{SHA} \\\n --hash sha512:00\nscipy==1 --hash=md5:00\n"
    found = read(text, "requirements.txt")
    assert [entry.hashes for entry in found.entries] == [(FileHash(sha256=SHA),), ()]
    assert codes(found.notes) == ["requirements.txt:3 HASH_NOT_COMPARED"]
    assert problems(RequirementSyntax, "numpy==1 --hash=sha256:00", "requirements.txt") == [
        "requirements.txt:1 REQUIREMENT_SYNTAX"
    ]


# --- against an index -------------------------------------------------------------------------------------------------
class Shelf:
    """A simple index (PEP 691) of wheels in memory."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        shelf = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                shelf.answer(self)

            def do_HEAD(self) -> None:
                shelf.answer(self)

            def log_message(self, *_) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def add(self, name: str, version: str, tag: str = "py3-none-any", requires: str = "") -> str:
        """One wheel; its sha256."""
        buffer = io.BytesIO()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(
                f"{name}-{version}.dist-info/METADATA", metadata + (f"Requires-Dist: {requires}\n" if requires else "")
            )
            archive.writestr(f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\n")
            archive.writestr(f"{name}-{version}.dist-info/RECORD", tag)
        self.files[f"{name}-{version}-{tag}.whl"] = buffer.getvalue()
        return hashlib.sha256(buffer.getvalue()).hexdigest()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        kind, _, name = request.path.strip("/").partition("/")
        found = {file: data for file, data in self.files.items() if file.split("-")[0] == name}
        body = self.files.get(name, b"")
        if kind == "simple":
            entries = [
                {"filename": file, "url": f"/files/{file}", "hashes": {"sha256": hashlib.sha256(data).hexdigest()}}
                for file, data in found.items()
            ]
            body = json.dumps({"meta": {"api-version": "1.0"}, "name": name, "files": entries}).encode()
        request.send_response(200 if found or kind == "files" else 404)
        request.send_header("Content-Type", "application/vnd.pypi.simple.v1+json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


@pytest.fixture
def shelf():
    shelf = Shelf()
    yield shelf
    shelf.stop()


@pytest.fixture
def locker(shelf, tmp_path):
    return Locker(tmp_path / "cache", index_url=shelf.url, retries=0)


def take(locker, found, *, pythons=(BOOKWORM, TRIXIE), policy=Policy.FIX, flag=None):
    return use_own_lock(found, request(pythons, Recipe(policy=policy, python=flag)), locker=locker)


def request(pythons=(BOOKWORM, TRIXIE), recipe=None):
    return LockRequest(platforms=tuple(Platform), pythons=pythons, recipe=recipe or Recipe(), reporter=Silent())


def compare_hashes(found, locks):
    return lock_findings.compare_hashes(dict.fromkeys(locks, found.entries), locks)


def test_a_lock_is_taken_as_it_is(shelf, locker):
    """Without what the packages themselves ask for, since a lock may have been told to leave it out."""
    shelf.add("app", "1.0", requires="base>=2")
    shelf.add("app", "1.1")
    shelf.add("base", "1.0")
    sha = shelf.add("native", "1.0", X86)
    shelf.add("native", "1.0", ARM)
    text = pylock(
        (
            "app",
            "1.0",
            [wheel_entry("app", "1.0", sha=hashlib.sha256(shelf.files["app-1.0-py3-none-any.whl"]).hexdigest())],
            "",
        ),
        ("base", "1.0", [wheel_entry("base", "1.0")], ""),
        ("native", "1.0", [wheel_entry("native", "1.0", X86, sha), wheel_entry("native", "1.0", ARM)], ""),
    )
    found = read(text, "pylock.toml")
    resolution = take(locker, found)
    assert resolution.python == BOOKWORM
    assert resolution.adjustments == ()
    for lock in resolution.locks.values():
        assert lock.versions == {"app": "1.0", "base": "1.0", "native": "1.0"}
        assert all(wheel.url.startswith(shelf.url.removesuffix("/simple")) for wheel in lock.wheels)
    with pytest.raises(WheelHash) as caught:
        compare_hashes(found, resolution.locks)
    assert codes(caught.value.findings) == ["pylock.toml:9 WHEEL_HASH", "pylock.toml:14 WHEEL_HASH"]
    assert caught.value.exit_code == 5


def test_the_python_of_a_lock(shelf, locker):
    tags = [f"cp313-cp313-manylinux_2_17_{machine}" for machine in ("x86_64", "aarch64")]
    wheels = [wheel_entry("native", "1.0", tag, shelf.add("native", "1.0", tag)) for tag in tags]
    found = read(pylock(("native", "1.0", wheels, ""), head="requires-python = '>=3.9'"), "pylock.toml")
    assert take(locker, found).python == TRIXIE
    assert take(locker, found, pythons=(BOOKWORM,)) is None
    assert take(locker, found, flag="3.11") is None
    bound = read(pylock(("native", "1.0", wheels, ""), head="requires-python = '<3.12'"), "pylock.toml")
    assert take(locker, bound) is None
    ruled = lock_requirements(bound, request(), locker=locker)
    assert ruled.python == TRIXIE
    assert codes(ruled.findings) == ["pylock.toml LOCK_NOT_TAKEN"]


def test_what_a_lock_does_not_list_is_noted(shelf, locker):
    shelf.add("plain", "1.0")
    wheels = [wheel_entry("plain", "1.0", f"cp39-abi3-manylinux_2_17_{machine}") for machine in ("x86_64", "aarch64")]
    found = read(pylock(("plain", "1.0", wheels, "")), "pylock.toml")
    resolution = take(locker, found)
    assert codes(compare_hashes(found, resolution.locks)) == ["pylock.toml:4 LOCK_FILE_MISSING"]


def test_hashes_of_requirements_are_compared(shelf, locker):
    sha = shelf.add("plain", "1.0")
    lock = locker.lock(["plain"], platform=AMD64, python="3.11.2", glibc=(2, 36))
    for hashes, marker, ok in (
        (f"--hash=sha256:{sha.upper()}", "", True),
        (f"--hash=sha256:{SHA} --hash=sha256:{sha}", "", True),
        (f"--hash=sha256:{SHA}", "; python_version < '3.11'", True),
        (f"--hash=sha256:{SHA}", "", False),
    ):
        found = read(f"# x\nplain=={'1.0'} {marker} {hashes}\n", "requirements.txt")
        if ok:
            assert compare_hashes(found, {AMD64: lock}) == ()
        else:
            with pytest.raises(WheelHash) as caught:
                compare_hashes(found, {AMD64: lock})
            assert codes(caught.value.findings) == ["requirements.txt:2 WHEEL_HASH"]
    moved = read(f"plain==0.9 --hash=sha256:{SHA}\n", "requirements.txt")
    assert compare_hashes(moved, {AMD64: lock}) == ()


def test_a_build_for_another_accelerator_has_no_hash_to_be_compared_with(shelf, locker):
    shelf.add("plain", "1.0+cpu")
    lock = locker.lock(["plain"], platform=AMD64, python="3.11.2", glibc=(2, 36))
    found = read(f"plain==1.0 --hash=sha256:{SHA}\n", "requirements.txt")
    assert codes(compare_hashes(found, {AMD64: lock})) == ["requirements.txt:1 LOCK_FILE_MISSING"]


def test_groups_are_part_of_the_recipe():
    assert Recipe().digest == Recipe(groups=()).digest
    assert len({Recipe().digest, Recipe(groups=("dev",)).digest, Recipe(groups=("dev", "gpu")).digest}) == 3
