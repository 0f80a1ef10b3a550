"""The doctor's experiments run uv for real, against an index on loopback."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement as Pep508
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from flops import programs
from flops.errors import IndexUnreachable, NoWheel, PackageNotFound, PythonUnavailable, Unresolvable, UsageError
from flops.formats.requirement import PythonRequest, Requirement
from flops.formats.requirements import Requirements
from flops.locking.lock import Locker
from flops.platforms import Platform
from flops.progress import Silent
from flops.recipe import Policy, Recipe
from flops.repair import pins, pythons
from flops.repair.doctor import LockRequest, find_locks
from flops.repair.pythons import PythonChoice, PythonConstraint

pytestmark = pytest.mark.integration

AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64
BOTH = (AMD64, ARM64)
BOOKWORM = PythonChoice(version="3.11.2", minor="3.11", glibc=(2, 36), provider="debian", suite="bookworm")
TRIXIE = PythonChoice(version="3.13.5", minor="3.13", glibc=(2, 41), provider="debian", suite="trixie")
X86 = "manylinux_2_17_x86_64"
ARM = "manylinux_2_17_aarch64"


def wanted(*lines: str, python: str | None = None) -> Requirements:
    """The requirements of a conda.yaml whose first package stands in line 5."""
    entries = []
    for line, text in enumerate(lines, start=5):
        parsed = Pep508(text)
        entries.append(
            Requirement(
                name=parsed.name,
                specifier=str(parsed.specifier),
                extras=tuple(parsed.extras),
                marker=str(parsed.marker or ""),
                path="conda.yaml",
                line=line,
                text=text,
            )
        )
    return Requirements(path="conda.yaml", python=asked(python), entries=tuple(entries), adjustments=(), notes=())


def asked(python: str | None) -> PythonRequest | None:
    if python is None:
        return None
    specifier = python if python[0] in "<>=~" else f"=={python}" if python.count(".") > 1 else f"=={python}.*"
    return PythonRequest(text=python, specifier=specifier, path="conda.yaml", line=3)


def run(
    locker: Locker,
    requirements,
    *,
    platforms=BOTH,
    policy=Policy.FIX,
    flag=None,
    offered=(BOOKWORM, TRIXIE),
    modules=(),
):
    recipe = Recipe(policy=policy, python=flag)
    request = LockRequest(platforms=platforms, pythons=offered, recipe=recipe, reporter=Silent())
    return find_locks(requirements, request, locker=locker, modules=modules)


def told(resolution):
    return [(a.code, a.package, a.before, a.after, a.platform, a.where) for a in resolution.adjustments]


def versions(resolution):
    return {platform.architecture: lock.versions for platform, lock in resolution.locks.items()}


def test_what_locks_is_left_as_it_is(shelf, locker: Locker):
    shelf.add("plain", "1.0", "base")
    shelf.add("base", "1.0")
    resolution = run(locker, wanted("plain==1.0", python="3.11.2"))
    assert resolution.python == BOOKWORM
    assert resolution.adjustments == ()
    assert versions(resolution) == {"amd64": {"base": "1.0", "plain": "1.0"}, "arm64": {"base": "1.0", "plain": "1.0"}}


def test_a_pin_moves_only_where_its_wheel_is_missing(shelf, locker: Locker):
    shelf.add("native", "5.9.8", tags=(f"cp36-abi3-{X86}",))
    shelf.add("native", "6.0.0", tags=(f"cp36-abi3-{X86}", f"cp36-abi3-{ARM}"))
    shelf.add("native", "6.1.0", tags=(f"cp36-abi3-{X86}", f"cp36-abi3-{ARM}"))
    resolution = run(locker, wanted("native==5.9.8", python="3.10.14"))
    assert versions(resolution) == {"amd64": {"native": "5.9.8"}, "arm64": {"native": "6.0.0"}}
    assert told(resolution) == [
        ("PYTHON_MOVED", "python", "3.10.14", "3.11.2", None, "conda.yaml:3"),
        ("PIN_RELAXED", "native", "==5.9.8", "==6.0.0", "linux/arm64", "conda.yaml:5"),
    ]
    assert "native 5.9.8 has no wheel for linux/arm64" in resolution.adjustments[1].reason


def test_a_repair_is_remembered(shelf, locker: Locker, tmp_path, monkeypatch):
    shelf.add("native", "1.0", tags=(f"cp36-abi3-{X86}",))
    shelf.add("native", "1.1", tags=(f"cp36-abi3-{X86}", f"cp36-abi3-{ARM}"))
    first = run(locker, wanted("native==1.0"))
    shelf.stop()
    fresh = Locker(tmp_path / "cache", index_url=shelf.url, retries=0)
    with monkeypatch.context() as patch:
        patch.setattr(programs, "run", None)
        assert run(fresh, wanted("native==1.0")) == first
    upgrading = Locker(tmp_path / "cache", index_url=shelf.url, retries=0, upgrade=True)
    with pytest.raises(IndexUnreachable):
        run(upgrading, wanted("native==1.0"))


def test_a_pin_missing_everywhere_moves_to_one_version_for_all(shelf, locker: Locker):
    shelf.add("native", "1.0.1", tags=(f"cp311-cp311-{X86}",))
    shelf.add("native", "1.0.5", tags=(f"cp311-cp311-{X86}", f"cp311-cp311-{ARM}"))
    resolution = run(locker, wanted("native==1.0.0"), offered=(BOOKWORM,))
    assert told(resolution) == [("PIN_RELAXED", "native", "==1.0.0", "==1.0.5", None, "conda.yaml:5")]


def test_the_nearest_version_must_fit_the_other_pins(shelf, locker: Locker):
    shelf.add("native", "1.0.3", "base<2")
    shelf.add("native", "1.0.4", "base>=2")
    shelf.add("base", "1.0")
    shelf.add("base", "2.0")
    resolution = run(locker, wanted("native[x]==1.0.2; python_version > '3'", "base==2.0"))
    assert told(resolution) == [("PIN_RELAXED", "native", "==1.0.2", "==1.0.4", None, "conda.yaml:5")]


def test_python_moves_to_the_nearest_that_fits_every_pin(shelf, locker: Locker):
    shelf.add("new", "1.0", tags=(f"cp313-cp313-{X86}", f"cp313-cp313-{ARM}"))
    resolution = run(locker, wanted("new==1.0", python="3.10.14"))
    assert resolution.python == TRIXIE
    assert told(resolution) == [("PYTHON_MOVED", "python", "3.10.14", "3.13.5", None, "conda.yaml:3")]


def test_a_pin_moves_before_an_offered_python_does(shelf, locker: Locker):
    shelf.add("new", "1.0", tags=(f"cp313-cp313-{X86}",))
    shelf.add("new", "1.1", tags=(f"cp311-cp311-{X86}",))
    resolution = run(locker, wanted("new==1.0", python="3.11"), platforms=[AMD64])
    assert resolution.python == BOOKWORM
    assert told(resolution) == [("PIN_RELAXED", "new", "==1.0", "==1.1", None, "conda.yaml:5")]


def test_an_offered_python_moves_where_no_pin_can(shelf, locker: Locker):
    shelf.add("new", "1.0", tags=(f"cp313-cp313-{X86}",))
    resolution = run(locker, wanted("new", python="3.11"), platforms=[AMD64])
    assert resolution.python == TRIXIE
    assert "not every requirement has a wheel for Python 3.11" in resolution.adjustments[0].reason


def test_platforms_agree_on_versions_where_they_can(shelf, locker: Locker):
    shelf.add("plain", "1.0", tags=("py3-none-any",))
    shelf.add("plain", "1.1", tags=(f"cp311-cp311-{ARM}",))
    resolution = run(locker, wanted("plain"))
    assert versions(resolution) == {"amd64": {"plain": "1.0"}, "arm64": {"plain": "1.0"}}


def test_strict_names_the_repairs_and_does_none(shelf, locker: Locker):
    shelf.add("native", "1.0", tags=(f"cp36-abi3-{X86}",))
    shelf.add("native", "1.1", tags=(f"cp36-abi3-{X86}", f"cp36-abi3-{ARM}"))
    with pytest.raises(NoWheel) as caught:
        run(locker, wanted("native==1.0"), policy=Policy.STRICT)
    assert "native==1.1 for linux/arm64" in caught.value.hint
    assert [(f.path, f.line, f.code) for f in caught.value.findings] == [("conda.yaml", 5, "NO_WHEEL")]
    assert [(a.package, a.after, a.platform) for a in caught.value.repairs] == [("native", "==1.1", "linux/arm64")]
    with pytest.raises(PythonUnavailable) as caught:
        run(locker, wanted("native==1.1", python="3.10"), policy=Policy.STRICT)
    assert "python==3.11.2" in caught.value.hint
    flagged = run(locker, wanted("native==1.1", python="3.10"), policy=Policy.STRICT, flag="3.13")
    assert told(flagged) == [("PYTHON_MOVED", "python", "3.10", "3.13.5", None, "conda.yaml:3")]
    assert "--python 3.13 was given" in flagged.adjustments[0].reason


def test_an_unknown_package_is_told_with_its_line(shelf, locker: Locker):
    shelf.add("plain", "1.0")
    with pytest.raises(PackageNotFound) as caught:
        run(locker, wanted("plain", "plane==2.0", "plone"))
    assert [(f.where, f.code) for f in caught.value.findings] == [
        ("conda.yaml:6", "PACKAGE_NOT_FOUND"),
        ("conda.yaml:7", "PACKAGE_NOT_FOUND"),
    ]
    assert "plane" in caught.value.message


def test_a_package_without_wheels_is_told_with_its_line(shelf, locker: Locker):
    shelf.file("source", "source-1.0.tar.gz", b"")
    shelf.add("native", "1.0", tags=(f"cp36-abi3-{X86}",))
    shelf.add("native", "2.0", tags=(f"cp36-abi3-{X86}", f"cp36-abi3-{ARM}"))
    with pytest.raises(NoWheel) as caught:
        run(locker, wanted("source", "native==1.0", "native<2"), offered=(BOOKWORM,))
    found = {finding.line: finding for finding in caught.value.findings}
    assert sorted(found) == [5, 6, 7]
    assert found[5].code == "SDIST_ONLY"
    assert "every version of source was published as source only" in found[5].message
    assert "native 1.0 has no wheel for linux/arm64" in found[6].message
    assert "native==2.0" in found[6].hint
    assert "2.0" in found[7].hint


def test_a_dependency_without_wheels_is_told_at_the_line_that_brings_it(shelf, locker: Locker):
    shelf.add("plain", "1.0")
    shelf.add("app", "1.0", "source")
    shelf.file("source", "source-1.0.tar.gz", b"")
    with pytest.raises(NoWheel) as caught:
        run(locker, wanted("plain", "app"), offered=(BOOKWORM,))
    assert [finding.where for finding in caught.value.findings] == ["conda.yaml:6"]
    assert "source" in caught.value.message


def test_a_conflict_names_its_lines(shelf, locker: Locker):
    shelf.add("plain", "1.0")
    shelf.add("app", "1.0", "base<2")
    shelf.add("tool", "1.0", "base>=2")
    shelf.add("base", "1.0")
    shelf.add("base", "2.0")
    with pytest.raises(Unresolvable) as caught:
        run(locker, wanted("plain", "app", "base", "tool"), offered=(BOOKWORM,))
    assert [finding.where for finding in caught.value.findings] == ["conda.yaml:6", "conda.yaml:8"]
    assert "app conflicts with tool (conda.yaml:8)" in caught.value.message
    assert "base<2" in caught.value.message
    assert "plain" not in caught.value.message


def test_an_index_that_fails_in_mid_diagnosis_is_not_the_users_fault(shelf, locker: Locker):
    shelf.add("plain", "1.0")
    shelf.stop()
    with pytest.raises(IndexUnreachable):
        run(locker, wanted("plain"))


@pytest.mark.parametrize(("lines", "after"), [((), "25.0"), (("pyarrow>=26",), "26.0")])
def test_pyarrow_is_bound_beside_numpy_1(shelf, locker: Locker, lines, after):
    shelf.add("datasets", "2.0", "pyarrow", "numpy")
    for version in ("25.0", "26.0"):
        shelf.add("pyarrow", version)
    for version in ("1.26.4", "2.0"):
        shelf.add("numpy", version)
    resolution = run(locker, wanted("datasets", "numpy<2", *lines))
    assert {lock.versions["pyarrow"] for lock in resolution.locks.values()} == {after}
    assert told(resolution) == ([] if lines else [("ADDED", "pyarrow", "", "<26", None, "conda.yaml")])
    assert [hint for _, hint in resolution.warnings] == (["write pyarrow<26"] if lines else [])
    modern = run(locker, wanted("datasets"))
    assert modern.adjustments == ()
    assert modern.locks[AMD64].versions["pyarrow"] == "26.0"


# --- Pythons ----------------------------------------------------------------------------------------
def offer(*names: str) -> list[PythonChoice]:
    return [
        PythonChoice(version=name, minor=name.rpartition(".")[0], glibc=(2, 36), provider="debian", suite="s")
        for name in names
    ]


@pytest.mark.parametrize(
    ("python", "expected"),
    [
        (None, ["3.11.2", "3.13.5", "3.9.1"]),
        ("3.11.5", ["3.11.2", "3.13.5", "3.9.1"]),
        ("3.10.14", ["3.11.2", "3.9.1", "3.13.5"]),
        ("3.12", ["3.13.5", "3.11.2", "3.9.1"]),
        ("3.13.5", ["3.13.5", "3.11.2", "3.9.1"]),
        ("3.8", ["3.9.1", "3.11.2", "3.13.5"]),
        (">=3.9", ["3.11.2", "3.13.5", "3.9.1"]),
        (">=3.12,<4", ["3.13.5", "3.11.2", "3.9.1"]),
        ("<3.10", ["3.9.1", "3.11.2", "3.13.5"]),
        ("2.7", ["3.9.1", "3.11.2", "3.13.5"]),
    ],
)
def test_pythons_are_tried_from_the_nearest(python, expected):
    offered = offer("3.11.2", "3.13.5", "3.9.1")
    assert [c.version for c in pythons.by_nearness(PythonConstraint.read(asked(python), None), offered)] == expected


def test_the_flag_wins_and_is_not_moved():
    offered = offer("3.11.2", "3.13.5")
    assert [c.version for c in pythons.by_nearness(PythonConstraint.read(asked("3.11"), "3.13"), offered)] == ["3.13.5"]
    constraint = PythonConstraint.read(None, "3.13.1")
    assert [c.version for c in pythons.by_nearness(constraint, offered)] == ["3.13.5"]
    (told_patch,) = pythons.adjustments(None, constraint, offered[1], offered)
    assert (told_patch.before, told_patch.after, told_patch.where) == ("3.13.1", "3.13.5", "--python")
    with pytest.raises(PythonUnavailable) as caught:
        pythons.by_nearness(PythonConstraint.read(None, "3.12"), offered)
    assert "3.11, 3.13" in caught.value.hint
    with pytest.raises(PythonUnavailable):
        pythons.by_nearness(None, [])
    with pytest.raises(UsageError):
        PythonConstraint.read(None, "three")


# --- pins -------------------------------------------------------------------------------------------
def shop(*available: str):
    """An `ask` over a fixed set of versions."""
    known = sorted(Version(text) for text in available)

    def ask(clauses: str, newest: bool) -> Version | None:
        fitting = [version for version in known if version in SpecifierSet(clauses)]
        return (fitting[-1] if newest else fitting[0]) if fitting else None

    return ask


@pytest.mark.parametrize(
    ("version", "available", "expected"),
    [
        ("5.9.8", ["5.9.5", "6.0.0", "5.8.0"], ["5.9.5", "5.8.0", "6.0.0"]),
        ("1.2.3", ["1.2.1", "1.2.5"], ["1.2.5", "1.2.1"]),
        ("1.2.3", ["1.2.2", "1.2.5", "1.2.6"], ["1.2.2", "1.2.5", "1.2.6"]),
        ("1.2.3", ["1.1.9", "1.1.0", "1.3.0", "1.3.7"], ["1.3.0", "1.3.7", "1.1.9", "1.1.0"]),
        ("1.2", ["0.9", "2.0", "3.0"], ["2.0", "0.9", "3.0"]),
        ("99.1", ["1.0", "2.4.6"], ["2.4.6", "1.0"]),
        ("1!2.0", ["1!2.1", "2.0"], ["1!2.1", "2.0"]),
        ("2023.3.post1", ["2023.3", "2024.1"], ["2023.3", "2024.1"]),
        ("1.0", [], []),
    ],
)
def test_nearest(version, available, expected):
    found = pins.find_nearest(Version(version), shop(*available))
    assert [str(candidate) for candidate in found] == expected
    known = [Version(text) for text in available]
    assert [str(candidate) for candidate in pins.by_distance(known, Version(version))] == expected


@given(
    pin=st.tuples(*[st.integers(0, 4)] * 3),
    others=st.sets(st.tuples(*[st.integers(0, 4)] * 3), max_size=12),
)
def test_nearest_gives_each_version_once_and_the_closer_share_first(pin, others):
    others.discard(pin)
    texts = {".".join(map(str, parts)): parts for parts in others}
    found = [texts[str(v)] for v in pins.find_nearest(Version(".".join(map(str, pin))), shop(*texts))]
    known = [Version(text) for text in texts]
    assert found == [texts[str(v)] for v in pins.by_distance(known, Version(".".join(map(str, pin))))]
    assert sorted(found) == sorted(others)

    def shared(parts):
        return next((place for place in range(3) if parts[place] != pin[place]), 3)

    assert [shared(parts) for parts in found] == sorted(map(shared, found), reverse=True)


@pytest.mark.parametrize(
    ("text", "pin"),
    [("p==1.2", "1.2"), ("p===1.2", "1.2"), ("p==1.2.*", None), ("p>=1", None), ("p", None), ("p==1,!=2", None)],
)
def test_pinned(text, pin):
    (entry,) = wanted(text).entries
    assert pins.pinned(entry) == (Version(pin) if pin else None)
