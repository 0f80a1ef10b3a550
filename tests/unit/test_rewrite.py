"""Repairs in the user's own file: the smallest edit, read back by the reader that reads every dependency file."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flops.errors import Adjustment
from flops.formats import requirements as reader
from flops.repair.rewrite import edit, patch

TXT = """\
# what we train with
numpy==1.26.4   # keep below 2
  Pandas[parquet] == 2.2.1 ; python_version > "3.8"  # frames

psutil==5.9.8 \\
    --hash=sha256:{a} \\
    --hash=sha256:{b}
scipy (>=1.0,<1.5)
torch
""".format(a="a" * 64, b="b" * 64)

YAML = """\
name: mlflow-env
channels:
- conda-forge
dependencies:
# the interpreter
- python=3.10.14
- conda-forge::pytorch=2.1.*=py3.10_cuda11.8  # gpu
- 'psutil==5.9.8'
- scikit-learn 1.4.2 py310h1fdf081_0
- "pytables[version='>=3.8']"
- numpy
- pip:
    - pandas==2.2.1  # frames
    - "scipy==1.13.0"
variables:
  A: b
"""

TOML = """\
[project]
name = "digits"
version = "1"
dependencies = [
  "numpy==1.26.4",  # arrays
  'psutil==5.9.8', "pandas == 2.2.1; python_version > '3.8'",
]
"""


def change(package, after, where, *, code="PIN_RELAXED", before="==0", platform=None):
    path, _, line = where.partition(":")
    return Adjustment(
        code=code,
        package=package,
        before=before,
        after=after,
        path=path,
        line=int(line or 0),
        reason="r",
        platform=platform,
    )


def edited(path, text, *changes):
    done = edit({path: text.encode()}, changes)
    assert done.left == ()
    return done.files.get(path, text.encode()).decode()


def difference(before, after):
    old, new = before.splitlines(), after.splitlines()
    return [line for line in old if line not in new], [line for line in new if line not in old]


@pytest.mark.parametrize(
    ("one", "gone", "come"),
    [
        (change("numpy", "==1.26.5", "r.txt:2"), "numpy==1.26.4   # keep below 2", "numpy==1.26.5   # keep below 2"),
        (
            change("pandas", "==2.2.2", "r.txt:3"),
            '  Pandas[parquet] == 2.2.1 ; python_version > "3.8"  # frames',
            '  Pandas[parquet] ==2.2.2 ; python_version > "3.8"  # frames',
        ),
        (change("scipy", "==1.13.0", "r.txt:8"), "scipy (>=1.0,<1.5)", "scipy==1.13.0"),
        (change("torch", "==2.0", "r.txt:9"), "torch", "torch==2.0"),
        (
            change("numpy", "numpy2", "r.txt:2", code="NAME_CORRECTED"),
            "numpy==1.26.4   # keep below 2",
            "numpy2==1.26.4   # keep below 2",
        ),
    ],
)
def test_one_line_of_a_text_file_changes(one, gone, come):
    assert difference(TXT, edited("r.txt", TXT, one)) == ([gone], [come])


def test_hashes_of_the_old_version_go_with_it():
    after = edited("r.txt", TXT, change("psutil", "==6.0.0", "r.txt:5"))
    assert "psutil==6.0.0\nscipy" in after
    assert "--hash" not in after


@pytest.mark.parametrize(
    ("one", "gone", "come"),
    [
        (change("python", "3.11.2", "c.yaml:6", code="PYTHON_MOVED"), "- python=3.10.14", "- python=3.11.2"),
        (
            change("torch", "==2.1.1", "c.yaml:7"),
            "- conda-forge::pytorch=2.1.*=py3.10_cuda11.8  # gpu",
            "- conda-forge::pytorch=2.1.1  # gpu",
        ),
        (change("psutil", "==6.0.0", "c.yaml:8"), "- 'psutil==5.9.8'", "- 'psutil==6.0.0'"),
        (
            change("scikit-learn", "==1.5.0", "c.yaml:9"),
            "- scikit-learn 1.4.2 py310h1fdf081_0",
            "- scikit-learn=1.5.0",
        ),
        (change("tables", "==3.9", "c.yaml:10"), "- \"pytables[version='>=3.8']\"", '- "pytables=3.9"'),
        (change("numpy", "<2", "c.yaml:11"), "- numpy", "- numpy<2"),
        (change("pandas", "==2.2.2", "c.yaml:13"), "    - pandas==2.2.1  # frames", "    - pandas==2.2.2  # frames"),
        (change("scipy", "==1.13.1", "c.yaml:14"), '    - "scipy==1.13.0"', '    - "scipy==1.13.1"'),
        (change("numpy", "", "c.yaml:11", code="TAKEN_OUT"), "- numpy", None),
    ],
)
def test_one_line_of_a_conda_file_changes(one, gone, come):
    assert difference(YAML, edited("c.yaml", YAML, one)) == ([gone], [come] if come else [])


def test_a_line_of_a_toml_file_changes():
    after = edited(
        "pyproject.toml",
        TOML,
        change("pandas", "==2.2.2", "pyproject.toml:6"),
        change("psutil", "==6.0.0", "pyproject.toml:6"),
    )
    assert difference(TOML, after)[1] == ["  'psutil==6.0.0', \"pandas ==2.2.2; python_version > '3.8'\","]


def test_a_pin_of_one_platform_becomes_two_lines_with_markers():
    arm = change("psutil", "==6.0.0", "r.txt:1", platform="linux/arm64")
    assert edited("r.txt", "psutil==5.9.8  # usage\nscipy\n", arm) == (
        'psutil==5.9.8; platform_machine != "aarch64"  # usage\npsutil==6.0.0; platform_machine == "aarch64"\nscipy\n'
    )
    marked = change("psutil", "==6.0.0", "r.txt:1", platform="linux/arm64")
    text = 'psutil==5.9.8; python_version > "3" or os_name == "nt"'
    first, second = edited("r.txt", text, marked).splitlines()
    assert first == 'psutil==5.9.8; (python_version > "3" or os_name == "nt") and platform_machine != \'aarch64\''
    assert second.startswith("psutil==6.0.0; (")
    inside = change("pandas", "==2.2.2", "c.yaml:13", platform="linux/arm64")
    quoted = change("scipy", "==1.13.1", "c.yaml:14", platform="linux/arm64")
    after = edited("c.yaml", YAML, inside, quoted)
    read = reader.read({"conda.yaml": after.encode()}).entries
    assert [entry.pep508 for entry in read if entry.name == "scipy"] == [
        'scipy==1.13.0 ; platform_machine != "aarch64"',
        'scipy==1.13.1 ; platform_machine == "aarch64"',
    ]


def test_conda_itself_has_no_markers_so_all_platforms_get_the_pin():
    after = edited("c.yaml", YAML, change("psutil", "==6.0.0", "c.yaml:8", platform="linux/arm64"))
    assert difference(YAML, after) == (["- 'psutil==5.9.8'"], ["- 'psutil==6.0.0'"])


def test_a_corrected_name_and_its_pin_are_one_edit():
    changes = (
        change("nunpy", "numpy", "r.txt:1", code="NAME_CORRECTED", before="nunpy"),
        change("numpy", "==1.26.4", "r.txt:1"),
    )
    assert edited("r.txt", "nunpy==1.26.9\n", *changes) == "numpy==1.26.4\n"


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("r.txt", "numpy", "numpy\npyarrow<26\n"),
        ("r.txt", "numpy\r\n", "numpy\r\npyarrow<26\r\n"),
        ("c.yaml", YAML, YAML.replace('scipy==1.13.0"\n', 'scipy==1.13.0"\n    - pyarrow<26\n')),
        ("c.yml", "dependencies:\n  - numpy\n", "dependencies:\n  - numpy\n  - pyarrow<26\n"),
    ],
)
def test_what_is_added_stands_last(path, text, expected):
    assert edited(path, text, change("pyarrow", "<26", path, code="ADDED", before="")) == expected


PROJECT = '[project]\nname = "digits"\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dependencies = []", 'dependencies = ["pyarrow<26"]'),
        ('dependencies = ["numpy"] # few', 'dependencies = ["numpy", "pyarrow<26"] # few'),
        ("dependencies = ['numpy',]\nx = 1", "dependencies = ['numpy', \"pyarrow<26\",]\nx = 1"),
        (
            "dependencies = [\n  'numpy'  # arrays\n  # none\n]\n",
            "dependencies = [\n  'numpy',  # arrays\n  # none\n  \"pyarrow<26\"\n]\n",
        ),
        ("dependencies = [\n\t'a', 'b',\n]\n", "dependencies = [\n\t'a', 'b',\n\t\"pyarrow<26\",\n]\n"),
        ("dependencies = [\r\n  'a',\r\n]\r\n", "dependencies = [\r\n  'a',\r\n  \"pyarrow<26\",\r\n]\r\n"),
        ("dependencies = [\n  # later\n]\n", 'dependencies = [\n  # later\n    "pyarrow<26",\n]\n'),
        ("dependencies = [\n  'a',\n  'b']\n", "dependencies = [\n  'a',\n  'b', \"pyarrow<26\"]\n"),
        ("", 'dependencies = [\n    "pyarrow<26",\n]\n'),
        ("[tool.x]\ny = 1\n", 'dependencies = [\n    "pyarrow<26",\n]\n[tool.x]\ny = 1\n'),
    ],
)
def test_what_is_added_to_a_project_stands_last_in_its_list(text, expected):
    one = change("pyarrow", "<26", "pyproject.toml", code="ADDED", before="")
    assert edited("pyproject.toml", PROJECT + text, one) == PROJECT + expected


def test_what_is_imported_is_added_to_the_list_or_group_that_was_used():
    one = change("pyarrow", "<26", "model_manager.py:3", code="ADDED", before="")
    grouped = '[dependency-groups]\nother = ["x"]\nTrain_it = ["numpy"]\n'
    done = edit({"pyproject.toml": grouped.encode()}, [one], main="pyproject.toml", groups=("train-it",))
    assert done.files["pyproject.toml"].decode() == grouped.replace('"numpy"', '"numpy", "pyarrow<26"')
    both = (PROJECT + "dependencies = []\n" + grouped).encode()
    done = edit({"pyproject.toml": both}, [one], main="pyproject.toml", groups=("train-it",))
    assert done.files["pyproject.toml"] == both.replace(b"= []", b'= ["pyarrow<26"]')
    extra = PROJECT + "[project.optional-dependencies]\ntrain = [\n]\n"
    done = edit({"pyproject.toml": extra.encode()}, [one], main="pyproject.toml", groups=("train",))
    assert done.files["pyproject.toml"].decode() == extra.replace("[\n]", '[\n    "pyarrow<26",\n]')


@pytest.mark.parametrize(
    "text",
    [
        PROJECT + 'dynamic = ["dependencies"]\n',
        'project = { name = "digits" }\n',
        'project.name = "digits"\n',
        '[tool.poetry.dependencies]\nnumpy = "1"\n',
        '[project]\nname = """\ndigits"""\n',
        "no toml",
    ],
)
def test_a_project_without_a_place_for_more_is_left_alone(text):
    one = change("pyarrow", "<26", "pyproject.toml", code="ADDED", before="")
    done = edit({"pyproject.toml": text.encode()}, [one])
    assert (done.files, done.left) == ({}, (one,))


@given(
    st.lists(st.sampled_from(["'numpy'", '"scipy==1"', "'" * 3 + "a" + "'" * 3, '"b[c]"']), max_size=4),
    st.lists(st.sampled_from([" ", "\n", "\n  ", " # a, ] comment\n", "\t"]), min_size=10, max_size=10),
    st.booleans(),
)
def test_any_list_keeps_its_items_and_comments_when_some_are_added(items, spaces, trailing):
    inner = spaces[9]
    for number, item in enumerate(items):
        comma = "," if trailing or number + 1 < len(items) else ""
        inner += item + spaces[2 * number] + comma + spaces[2 * number + 1]
    text = f"{PROJECT}dependencies = [{inner}]\nversion = '1'\n"
    changes = [change(name, "<3", "pyproject.toml", code="ADDED", before="") for name in ("one", "two")]
    after = edited("pyproject.toml", text, *changes)
    before, read = tomllib.loads(text), tomllib.loads(after)
    assert read["project"].pop("dependencies") == [*before["project"].pop("dependencies"), "one<3", "two<3"]
    assert read == before
    assert after.count("#") == text.count("#")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks_stay(mark):
    data = mark + b"numpy==1.0\r\n# caf\xc3\xa9\r\nscipy==1.0"
    done = edit({"r.txt": data}, [change("scipy", "==1.1", "r.txt:3")])
    assert done.files["r.txt"] == data.replace(b"scipy==1.0", b"scipy==1.1")


def test_utf_16_stays_utf_16():
    data = "\ufeffnumpy==1.0\r\n".encode("utf-16-le")
    done = edit({"r.txt": data}, [change("numpy", "==1.1", "r.txt:1")])
    assert done.files["r.txt"].decode("utf-16") == "numpy==1.1\r\n"


@pytest.mark.parametrize(
    "one",
    [
        change("absent", "==1", "r.txt:2"),
        change("numpy", "==1", "r.txt:99"),
        change("numpy", "==1", "other.txt:1"),
        change("numpy", "==1", "r.txt"),
        change("pyarrow", "<26", "p.toml", code="ADDED"),
    ],
)
def test_what_has_no_place_is_told(one):
    done = edit({"r.txt": TXT.encode(), "p.toml": TOML.encode()}, [one])
    assert done.left == (one,)
    assert done.files == {}


@pytest.mark.parametrize("code", ["RENAMED", "CONDA_ONLY", "REMOVED", "ALTERNATIVE_CHOSEN"])
def test_what_only_images_need_is_not_written(code):
    done = edit({"r.txt": TXT.encode()}, [change("numpy", "==2", "r.txt:2", code=code)])
    assert (done.files, done.left) == ({}, ())


def test_a_patch_can_be_applied(tmp_path):
    before = {"r.txt": b"numpy==1.0\r\nscipy==1.0\r\n"}
    done = edit(before, [change("scipy", "==1.1", "r.txt:2")])
    assert patch(before, done.files) == (
        "--- a/r.txt\n+++ b/r.txt\n@@ -1,2 +1,2 @@\n numpy==1.0\n-scipy==1.0\n+scipy==1.1\n"
    )


NAMES = st.sampled_from(["numpy", "Scikit_Learn", "torch", "x", "a.b"])
SPECS = st.sampled_from(["", "==1.0", " == 1.0", ">=1,<2", "~=1.2", "!=1.5", " (>=1)", "==1.*"])
TAILS = st.sampled_from(["", "  # why", ' ; python_version > "3"', '; os_name=="posix" # c', " "])


@given(
    parts=st.lists(st.tuples(NAMES, st.sampled_from(["", "[a,b]"]), SPECS, TAILS), min_size=1, max_size=4),
    place=st.integers(0, 3),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_the_edit_reads_back_as_the_repair_and_nothing_else_changes(parts, place, end):
    place %= len(parts)
    lines = ["".join(part) for part in parts]
    text = end.join(lines) + end
    before = reader.read({"requirements.txt": text.encode()}).entries
    name = before[place].name
    after = edited("requirements.txt", text, change(name, "==9.9", f"requirements.txt:{place + 1}"))
    read = reader.read({"requirements.txt": after.encode()}).entries
    expected = [
        (entry.name, "==9.9" if number == place else entry.specifier, entry.extras, entry.marker, entry.line)
        for number, entry in enumerate(before)
    ]
    assert [(entry.name, entry.specifier, entry.extras, entry.marker, entry.line) for entry in read] == expected
    kept = after.split(end)
    assert kept[:place] + kept[place + 1 :] == text.split(end)[:place] + text.split(end)[place + 1 :]
