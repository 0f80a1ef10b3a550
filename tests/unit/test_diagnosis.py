"""Causes told apart by what an index published."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

from flops.errors import (
    NoWheel,
    NoWheelForPython,
    PackageNotFound,
    RequiresPython,
    SdistOnly,
    Unresolvable,
    VersionNotFound,
    Yanked,
)
from flops.formats.requirement import Requirement
from flops.locking import index
from flops.locking.pylock import LockTarget
from flops.platforms import Platform
from flops.repair.diagnosis import KINDS, cause, conflict_findings, error, no_wheel_finding
from flops.repair.pins import contradicts_itself

BOTH = [LockTarget(platform=platform, python="3.11.2", glibc=(2, 36)) for platform in Platform]
X86 = "manylinux_2_17_x86_64"
ARM = "manylinux_2_17_aarch64"
VERSIONS = ["0.9", "1.0rc1", "1.0", "1.0.1", "1.2", "2.0"]


def project(*files):
    """Each file is a name, or a name with Requires-Python and whether it was yanked."""
    entries = [
        {"filename": name, "requires-python": python or None, "yanked": yanked}
        for name, python, yanked in ((file, "", False) if isinstance(file, str) else file for file in files)
    ]
    return index.parse("plain", "application/vnd.pypi.simple.v1+json", json.dumps({"files": entries}).encode())


def entry(specifier="", line=3):
    return Requirement(name="plain", specifier=specifier, path="requirements.txt", line=line, text=f"plain{specifier}")


@pytest.mark.parametrize(
    ("files", "specifier", "kind", "said"),
    [
        (None, "==1.0", PackageNotFound, "no package plain"),
        ([], "", VersionNotFound, "nothing was published under the name plain"),
        (["plain-1.0-py3-none-any.whl"], "==2.0", VersionNotFound, "plain 2.0 was never published"),
        (
            ["plain-1.0-py3-none-any.whl"],
            ">=2",
            VersionNotFound,
            "no version of plain that >=2 allows was ever published",
        ),
        ([("plain-1.0-py3-none-any.whl", "", True)], "", Yanked, "withdrawn"),
        (["plain-1.0.tar.gz"], "==1.0", SdistOnly, "plain 1.0 was published as source only"),
        (["plain-1.0.zip", ("plain-1.0-py3-none-any.whl", "", True)], "", SdistOnly, "source only"),
        ([f"plain-1.0-cp311-cp311-{X86}.whl"], "==1.0", NoWheel, "no wheel for linux/amd64 and linux/arm64"),
        (["plain-1.0-cp311-cp311-win_amd64.whl"], "==1.0", NoWheel, "plain 1.0 has no wheel"),
        (["plain-1.0-cp311-cp311-manylinux_2_39_x86_64.whl"], "", NoWheel, "every version of plain has no wheel"),
        (
            [f"plain-1.0-{tag}-{machine}.whl" for tag in ("cp38-cp38", "cp310-cp310") for machine in (X86, ARM)],
            "==1.0",
            NoWheelForPython,
            "no wheel for Python 3.11 on linux/amd64; there are some for 3.8 to 3.10",
        ),
        ([("plain-1.0-py3-none-any.whl", ">=3.12", False)], "", RequiresPython, "asks for Python >=3.12"),
    ],
)
def test_causes(files, specifier, kind, said):
    found = cause(None if files is None else project(*files), entry(specifier), BOTH)
    assert found.kind is kind
    assert said in found.message
    assert kind in KINDS


def test_a_version_that_never_was_has_neighbours():
    page = project(*(f"plain-{version}-py3-none-any.whl" for version in ("1.26.2", "1.26.4", "2.0.0", "0.9")))
    found = cause(page, entry("==1.26.9"), BOTH)
    assert found.near == "1.26.2, 1.26.4, 2.0.0"
    told = no_wheel_finding(entry("==1.26.9"), found, page.usable(BOTH))
    assert "the nearest are 1.26.2, 1.26.4, 2.0.0" in told.message
    assert told.hint.endswith("write plain==1.26.4")
    assert (told.where, told.code) == ("requirements.txt:3", "VERSION_NOT_FOUND")


def test_bounds_that_exclude_each_other_are_told_and_nothing_is_guessed():
    page = project(*(f"plain-{version}-py3-none-any.whl" for version in ("1.19.0", "1.26.4")))
    found = cause(page, entry(">=1.26.4,<1.20"), BOTH)
    told = no_wheel_finding(entry(">=1.26.4,<1.20"), found, page.usable(BOTH))
    assert told.message == "the bounds of plain>=1.26.4,<1.20 exclude each other"
    assert told.hint == "correct the bounds"


@given(
    st.lists(
        st.tuples(st.sampled_from([">=", ">", "<", "<=", "==", "!=", "~="]), st.sampled_from(VERSIONS)), max_size=4
    ),
    st.booleans(),
)
def test_only_what_no_version_fits_contradicts_itself(clauses, local):
    specifier = ",".join(f"{sign}{version}{'+cpu' if sign == '==' and local else ''}" for sign, version in clauses)
    if contradicts_itself(entry(specifier)):
        versions = [f"{version}{local}" for version in VERSIONS for local in ("", ".post1", "+cpu")]
        assert not list(SpecifierSet(specifier).filter(versions, prereleases=True))


def test_pre_releases_count_where_there_is_nothing_else():
    page = project("plain-1.0rc1-py3-none-any.whl")
    assert page.allowed("")
    assert not page.allowed("==1.0")


def test_an_html_page_says_the_same():
    html = b"""<!DOCTYPE html><html><body>
      <a href="../../f/plain-1.0-py3-none-any.whl#sha256=00" data-requires-python="&gt;=3.12">x</a>
      <a href="/f/plain-2.0.tar.gz" data-yanked="bad">plain-2.0.tar.gz</a> <a name="top">not a file</a>
      <a href="/f/other-2.0-py3-none-any.whl">other</a> <a href="/f/plain-nonsense.whl">broken</a>
    </body></html>"""
    page = index.parse("plain", "text/html; charset=UTF-8", html)
    assert [(str(file.version), file.is_wheel, file.requires_python, file.yanked) for file in page.files] == [
        ("1.0", True, ">=3.12", False),
        ("2.0", False, "", True),
    ]


@pytest.mark.parametrize("data", [b"{}", b"[]", b'{"files": 3}', b"nonsense"])
def test_what_is_no_page_is_refused(data):
    with pytest.raises(ValueError):
        index.parse("plain", "application/vnd.pypi.simple.v1+json", data)


def test_a_requires_python_that_nobody_can_read_allows_all():
    assert project(("plain-1.0-py3-none-any.whl", ">=3.x", False)).usable(BOTH)


def test_a_conflict_names_the_others_of_each_line():
    core = [entry("==1.0", line=2), entry("==2.0", line=9)]
    first, second = conflict_findings(core, Platform.LINUX_AMD64, "3.11", "because")
    assert first.message == "plain==1.0 conflicts with plain==2.0 (requirements.txt:9)"
    assert second.hint == "change this line, or one of requirements.txt:2"
    assert {first.code, second.code} == {Unresolvable.code}
    (alone,) = conflict_findings(core[:1], Platform.LINUX_ARM64, "3.11", "base has no wheel")
    assert (alone.code, alone.line) == ("NO_WHEEL", 2)
    assert "base has no wheel" in alone.message


def test_the_gravest_cause_names_the_error():
    causes = [cause(project("plain-1.0.tar.gz"), entry(), BOTH), cause(None, entry(), BOTH)]
    found = [no_wheel_finding(entry(line=line), one, ()) for line, one in enumerate(causes, start=1)]
    told = error(found, details="x")
    assert type(told) is PackageNotFound
    assert told.message.startswith("requirements.txt:2: ")
    assert told.findings == tuple(found)
    assert told.exit_code == 5
