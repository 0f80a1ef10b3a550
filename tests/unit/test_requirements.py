"""Dependency files: conda's versions and names, requirement lines, and the packages that are added and taken out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement as Pep508
from packaging.specifiers import SpecifierSet

from flops.contract.structure import ImportedModule, Structure
from flops.errors import FlopsError, RequirementForbidden, RequirementsMissing, RequirementSyntax
from flops.formats import conda, requirements
from flops.formats.requirement import FILE_LIMIT


def read(text, name="requirements.txt", **others):
    return requirements.read({name: text.encode() if isinstance(text, str) else text, **others})


def entries(found):
    return [entry.pep508 for entry in found.entries]


def environment(*lines):
    return read("dependencies:\n" + "".join(f"  - {line}\n" for line in lines), "conda.yaml")


@pytest.mark.parametrize(
    ("text", "specifier"),
    [
        ("numpy", ""),
        ("numpy=*", ""),
        ("numpy *", ""),
        ("numpy=1", "==1.*"),
        ("numpy=1.26", "==1.26.*"),
        ("numpy=1.26.*", "==1.26.*"),
        ("numpy=1.26*", "==1.26.*"),
        ("numpy==1.26.*", "==1.26.*"),
        ("numpy 1.26.*", "==1.26.*"),
        ("numpy=1.26.4", "==1.26.4"),
        ("numpy=1.26.4.*", "==1.26.4.*"),
        ("numpy==1.26.4", "==1.26.4"),
        ("numpy==1.26", "==1.26"),
        ("numpy 1.26.4", "==1.26.4"),
        ("numpy 1.26.4 py311h64a7726_0", "==1.26.4"),
        ("numpy=1.26.4=py311h64a7726_0", "==1.26.4"),
        ("numpy==1.26.4=py311h64a7726_0", "==1.26.4"),
        ("numpy=1.26=*_openblas", "==1.26"),
        ("numpy>=1.20", ">=1.20"),
        ("numpy >=1.20,<2", ">=1.20,<2"),
        ("numpy >= 1.20 , < 2", ">=1.20,<2"),
        ("numpy<2,>=1.20", ">=1.20,<2"),
        ("numpy>=1.20.*", ">=1.20"),
        ("numpy!=1.24.*", "!=1.24.*"),
        ("numpy!=1.24.1", "!=1.24.1"),
        ("numpy~=1.24", "~=1.24"),
        ("numpy~=1", ">=1"),
        ("numpy>=1.20,!=1.24.1,<2", ">=1.20,!=1.24.1,<2"),
        ("numpy=2.0.0rc1", "==2.0.0rc1"),
        ("numpy=2.0rc1", "==2.0rc1"),
        ("conda-forge::numpy=1.26.4", "==1.26.4"),
        ("conda-forge/linux-64::numpy 1.26.4", "==1.26.4"),
        ("numpy[version='>=1.20,<2']", ">=1.20,<2"),
        ('numpy[version="1.26.4", build=py311_0]', "==1.26.4"),
        ("numpy[build=py311_0]", ""),
    ],
)
def test_conda_versions_become_pep_440(text, specifier):
    spec = conda.match_spec(text)
    assert spec.name == "numpy"
    assert conda.highest(spec.version) == (specifier, False)


@pytest.mark.parametrize(
    ("version", "chosen"),
    [
        ("1.25|1.26", "==1.26"),
        ("=3.9|=3.10", "==3.10.*"),
        (">=2|<1", ">=2"),
        ("1.2.3|1.10.0|1.9", "==1.10.0"),
        ("1|*", ""),
    ],
)
def test_the_highest_alternative_counts(version, chosen):
    assert conda.highest(version) == (chosen, True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=1",
        ">=1",
        "numpy=>1",
        "numpy=1.x",
        "numpy===",
        "numpy 1 2 3",
        "numpy>=",
        "numpy@1",
        "numpy=1|",
        "::",
        "numpy[version='x']",
    ],
)
def test_what_conda_could_not_read(text):
    with pytest.raises(ValueError):  # noqa: PT012
        spec = conda.match_spec(text)
        conda.highest(spec.version)
        pytest.fail(f"{spec}") if not spec.version else None


@given(st.text(max_size=40) | st.from_regex(r"numpy[ =<>!~|,.*0-9a-z\[\]':]{0,20}", fullmatch=True))
def test_any_text_is_a_match_specification_or_a_value_error(text):
    try:
        specifier, _ = conda.highest(conda.match_spec(text).version)
    except ValueError:
        return
    SpecifierSet(specifier)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=4), st.sampled_from(["=", "==", " ", ">=", "<", "!=", "~="]))
def test_a_version_allows_itself_as_conda_says(numbers, operator):
    version = ".".join(map(str, numbers))
    allowed = SpecifierSet(conda.highest(conda.match_spec(f"x{operator}{version}").version)[0])
    assert (version in allowed) == (operator not in ("<", "!="))


names = st.sampled_from(
    [
        "numpy",
        "-r a.txt",
        "-r requirements.txt",
        "--hash=sha256:a",
        "\\",
        "#",
        "${A}",
        "-e .",
        "./x",
        "@",
        "==1",
        ";",
        "\r\n",
        "\n",
        " ",
    ]
)


@settings(max_examples=200)
@given(st.lists(names | st.text(max_size=8), max_size=12).map(" ".join) | st.text(max_size=60))
def test_any_requirements_file_gives_requirements_or_findings(text):
    check_any("requirements.txt", text)


yaml_parts = st.sampled_from(
    [
        "dependencies:",
        "\n",
        "\n  - ",
        "- pip:",
        "    - ",
        "numpy=1",
        "[",
        "]",
        "{",
        "}",
        "&a",
        "*a",
        "!!python/object:x",
        "|",
        ">",
        "python",
        "? ",
        "channels:",
    ]
)


@settings(max_examples=200)
@given(st.lists(yaml_parts | st.text(max_size=6), max_size=14).map("".join))
def test_any_conda_file_gives_requirements_or_findings(text):
    check_any("conda.yaml", text)


def check_any(name, text):
    data = text.encode("utf-8", "surrogatepass")
    try:
        found = requirements.read({name: data, "a.txt": data})
    except (RequirementForbidden, RequirementSyntax) as error:
        found, problems = None, error.findings
        assert problems
        assert all(finding.path in (name, "a.txt") and finding.line >= 0 for finding in problems)
    if found:
        assert all(str(Pep508(entry.pep508).specifier) == str(SpecifierSet(entry.specifier)) for entry in found.entries)


@given(st.binary(max_size=60))
def test_any_bytes(data):
    for name in ("requirements.txt", "conda.yaml"):
        try:
            requirements.read({name: data})
        except FlopsError as error:
            found = error.findings
            assert found


def test_names_that_the_index_spells_otherwise():
    found = environment("pytorch=2.1.2", "opencv>=4.5", "opencv=4.8.0", "PyYAML=6.0.1", "msgpack-python", "ruamel_yaml")
    assert entries(found) == [
        "torch==2.1.2",
        "opencv-python-headless>=4.5",
        "opencv-python-headless==4.8.0.*",
        "pyyaml==6.0.1",
        "msgpack",
        "ruamel-yaml",
    ]
    assert [(item.code, item.package) for item in found.adjustments] == [
        ("RENAMED", "pytorch"),
        ("RENAMED", "opencv"),
        ("RENAMED", "opencv"),
        ("RENAMED", "msgpack-python"),
    ]


def test_packages_that_only_conda_has_say_what_happens_instead():
    found = environment(
        "cudatoolkit=11.8", "libgcc-ng >=12", "openssl=1.1.1w", "r-base", "librosa", "xz=5.4.2=h_0", "tzdata=2023c"
    )
    assert entries(found) == ["librosa"]
    assert [item.package for item in found.adjustments] == [
        "cudatoolkit",
        "libgcc-ng",
        "openssl",
        "r-base",
        "xz",
        "tzdata",
    ]
    assert all(item.code == "CONDA_ONLY" and item.reason and item.after == "" for item in found.adjustments)


def test_the_data_file_holds_no_name_twice():
    known = conda.names()
    assert not [name for name in known.index if known.reason(name)]
    assert all(name == name.lower() for name in [*known.index, *known.index.values(), *known.conda_only])
    assert known.longer <= set(known.index.values())


def test_python():
    assert environment("numpy").python is None
    assert environment("python").python is None
    for text, written, specifier in (
        ("python=3.10.14", "3.10.14", "==3.10.14"),
        ("python=3.10", "3.10", "==3.10.*"),
        ("python 3.10.14 h0_cpython", "3.10.14", "==3.10.14"),
        ("'python>=3.9,<3.12'", ">=3.9,<3.12", ">=3.9,<3.12"),
    ):
        found = environment("numpy", text).python
        assert (found.text, found.specifier, found.path, found.line) == (written, specifier, "conda.yaml", 3)


def test_lines_survive_comments_and_blanks():
    text = "# x\nname: y\ndependencies:\n\n  # z\n  - numpy\n  - pip\n  - pip:\n\n    # w\n    - pandas  # v\n"
    found = read(text, "environment.yaml")
    assert [(entry.name, entry.where) for entry in found.entries] == [
        ("numpy", "environment.yaml:6"),
        ("pandas", "environment.yaml:11"),
    ]


def test_the_first_file_counts():
    files = {name: b"dependencies: [numpy]" for name in requirements.FILES if name.endswith(".yaml")} | {
        "conda.yml": b"dependencies: [numpy]",
        "environment.yml": b"dependencies: [numpy]",
        "pylock.toml": b'lock-version = "1.0"',
        "uv.lock": b'version = 1\n[[package]]\nname = "it"\nversion = "0"\nsource = {virtual = "."}',
        "requirements.txt": b"scipy",
        "pyproject.toml": b"[project]\nname = 'it'",
    }
    assert set(files) == set(requirements.FILES)
    for name in requirements.FILES:
        found = requirements.read(files)
        assert found.path == name
        ignored = [note.path for note in found.notes if note.code == "MORE_THAN_ONE_FILE"]
        read = {name, "pyproject.toml"} if name == "uv.lock" else {name}
        assert ignored == [other for other in requirements.FILES if other in files and other not in read]
        del files[name]
    with pytest.raises(RequirementsMissing):
        requirements.read({"sub/requirements.txt": b"", "setup.py": b""})


@pytest.mark.parametrize(
    ("text", "counts"),
    [("", False), ("\ufeff# none yet\r\n\r\n", False), ("-r more.txt", True), ("# x\nscipy", True), ("\0", True)],
)
def test_requirements_that_say_nothing_leave_the_word_to_pyproject(text, counts):
    files = {"requirements.txt": text.encode(), "more.txt": b"scipy"}
    project = {"pyproject.toml": b"[project]\nname = 'it'\ndependencies = ['numpy']"}
    if text == "\0":
        with pytest.raises(RequirementSyntax):
            requirements.read(files | project)
        return
    found = requirements.read(files | project)
    assert (found.path, entries(found)) == (
        ("requirements.txt", ["scipy"]) if counts else ("pyproject.toml", ["numpy"])
    )
    assert requirements.read(files).path == "requirements.txt", "alone it counts: the code may need nothing"


def test_one_line_that_is_wrong_is_told_as_one():
    with pytest.raises(RequirementSyntax, match=r"^requirements.txt:2: this is not a requirement$"):
        read("numpy\nscipy ==\n")
    with pytest.raises(
        RequirementSyntax, match=r"^requirements.txt holds 2 lines .*; the first is requirements.txt:1: "
    ):
        read("numpy ==\nscipy ==\n")


def test_encodings():
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert entries(read("numpy==1.26.4\r\n".encode(encoding))) == ["numpy==1.26.4"]
        assert entries(read("dependencies:\n- numpy=1.26.4\n".encode(encoding), "conda.yml")) == ["numpy==1.26.4"]
    for data in (b"numpy\xff", b"numpy\0"):
        for name in ("requirements.txt", "conda.yaml"):
            with pytest.raises(RequirementSyntax):
                read(data, name)


def test_continued_lines_and_comments():
    text = "numpy \\\n  ==1.26.4\nscipy # no\n# yes \\\npandas\nx#y\n"
    with pytest.raises(RequirementSyntax) as caught:
        read(text)
    assert [finding.where for finding in caught.value.findings] == ["requirements.txt:6"]
    assert entries(read(text.replace("x#y\n", "last \\"))) == ["numpy==1.26.4", "scipy", "pandas", "last"]


def test_builds_for_accelerators_lose_their_label():
    found = read("torch==2.1.0+cu118\ntorchvision==0.16.0+cpu\nthing==1.0+acme.1\n")
    assert entries(found) == ["torch==2.1.0", "torchvision==0.16.0", "thing==1.0+acme.1"]
    assert [(item.code, item.before, item.after) for item in found.adjustments] == [
        ("LOCAL_VERSION_DROPPED", "==2.1.0+cu118", "==2.1.0"),
        ("LOCAL_VERSION_DROPPED", "==0.16.0+cpu", "==0.16.0"),
    ]


def test_mlflow_and_flops_utils_are_taken_out_and_reported():
    found = read("MLflow==2.12.1\nmlflow_skinny\nmlflow-tracing>=3\nflops.utils\nmlflow-export-import\n")
    assert entries(found) == ["mlflow-export-import"]
    assert [(item.code, item.package, item.where) for item in found.adjustments] == [
        ("REMOVED", "mlflow", "requirements.txt:1"),
        ("REMOVED", "mlflow-skinny", "requirements.txt:2"),
        ("REMOVED", "mlflow-tracing", "requirements.txt:3"),
        ("REMOVED", "flops-utils", "requirements.txt:4"),
    ]


def test_messages_hold_nothing_of_a_file():
    text = "--index-url https://user:sentinel@h.example/simple\nx @ https://sentinel@h/x.whl\nsentinel ==\n--sentinel=1 x\n./sentinel\n"
    with pytest.raises(RequirementForbidden) as caught:
        read(text)
    assert len(caught.value.findings) == 5
    shown = str(caught.value.to_json()).replace("--sentinel", "")
    assert "sentinel" not in shown


def test_includes_stay_inside_and_end():
    files = {
        "requirements/a.txt": b"-r b.txt\nnumpy\n",
        "requirements/b.txt": b"-r ../requirements/a.txt\n-r ../requirements.txt\nscipy\n",
    }
    assert entries(read("-r requirements/a.txt\n--requirement=requirements/b.txt\n", **files)) == ["scipy", "numpy"]
    for line in (
        "-r ../a.txt",
        "-r requirements/../../a.txt",
        "-r /a.txt",
        "-r ~/a.txt",
        "-r https://h/a.txt",
        "-r C:\\a.txt",
        "-r",
    ):
        with pytest.raises(RequirementForbidden):
            read(line, **files)
    many = {f"f{number}.txt": f"-r f{number + 1}.txt\n".encode() for number in range(100)}
    with pytest.raises(RequirementSyntax):
        read("-r f0.txt", **many)


def test_a_file_too_large_is_not_read():
    with pytest.raises(RequirementSyntax, match="more than"):
        read("#\n" * (FILE_LIMIT // 2) + "\n")
    assert entries(read("#\n" * (FILE_LIMIT // 2))) == []


def test_deep_yaml_is_refused():
    with pytest.raises(RequirementSyntax):
        read("dependencies: " + "[" * 200_000, "conda.yaml")


@pytest.mark.parametrize(
    "line",
    [
        " " * 200_000 + "x y",
        "numpy" + " " * 200_000 + "x",
        "numpy==" + "9" * 5000,
        "(" * 200_000,
        "x;" + "(" * 900,
        "numpy===1.0",
    ],
)
def test_lines_that_would_take_long_end_quickly(line):
    for name, text in (
        ("requirements.txt", line),
        ("conda.yaml", f"dependencies:\n- '{line}'\n- pip:\n  - '{line}'\n"),
    ):
        with pytest.raises((RequirementSyntax, RequirementForbidden)):
            read(text, name)


def test_which_files_are_wanted():
    wanted = [*requirements.FILES, "requirements/base.txt", "dev.in"]
    assert all(map(requirements.is_candidate, wanted))
    assert not any(map(requirements.is_candidate, ["model.py", "sub/conda.yaml", "data.csv"]))


USES = Structure(load_dataset=("data_manager.py", 1))


@pytest.mark.parametrize(
    ("text", "added"),
    [
        ("numpy==1.26.4", ["datasets>=2.14.3,<3", "pillow", "pyarrow<26"]),
        ("numpy<2", ["datasets>=2.14.3,<3", "pillow", "pyarrow<26"]),
        ("numpy~=1.24", ["datasets>=2.14.3,<3", "pillow", "pyarrow<26"]),
        ("numpy>=1.24", ["datasets>=2.14.3,<3", "pillow"]),
        ("numpy", ["datasets>=2.14.3,<3", "pillow"]),
        ("numpy==2.1.0", ["datasets>=2.14.3,<3", "pillow"]),
        ("datasets==2.19.0", ["pillow"]),
        ("datasets", ["datasets>=2.14.3,<3", "pillow"]),
        ("pillow", ["datasets>=2.14.3,<3"]),
        ("datasets==2.19.0\nPillow==10.0.1\nnumpy==1.26.4\npyarrow==15.0.2", []),
        ("datasets==2.19.0\nPillow==10.0.1\nnumpy==1.26.4\npyarrow", ["pyarrow<26"]),
    ],
)
def test_what_load_dataset_needs(text, added):
    before = read(text)
    after = requirements.with_data_packages(before, USES)
    assert entries(after) == entries(before) + added
    assert [item.package + item.after for item in after.adjustments] == added
    assert all(entry.where == "requirements.txt" for entry in after.entries[len(before.entries) :])
    assert requirements.with_data_packages(before, Structure()) == before


@pytest.mark.parametrize("text", ["numpy==1.26.4", "numpy<2.0", "numpy<=1.99", "numpy==1.*", "numpy~=1.20"])
def test_numpy_one(text):
    assert requirements.numpy_is_one(read(text))


@pytest.mark.parametrize(
    "text",
    ["numpy", "scipy", "numpy==2.0.1", "numpy>=1,<3", "numpy<2.0.1", "numpy==2.34.56", "numpy==3.1"],
)
def test_numpy_that_may_be_two(text):
    assert not requirements.numpy_is_one(read(text))


def test_the_bound_on_pyarrow_is_added_once():
    once = requirements.with_pyarrow_bound(read("numpy"))
    assert entries(once) == ["numpy", "pyarrow<26"]
    assert requirements.with_pyarrow_bound(once) == once


def test_imports_of_mlflow_are_noted():
    def module(**changes):
        return ImportedModule(**{"path": "model_manager.py", "line": 3, "name": "mlflow", "module": "mlflow"} | changes)

    imports = (module(), module(line=9, guarded=True), module(path="x.py", reached=False), module(name="numpy"))
    found = requirements.with_data_packages(read("mlflow"), Structure(imports=imports))
    assert [(note.code, note.where) for note in found.notes] == [("MLFLOW_IMPORTED", "model_manager.py:3")]
