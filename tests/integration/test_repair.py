"""Repairs and proposals: uv for real, on a small index on loopback."""

from __future__ import annotations

import pytest

from flops.errors import NoWheel, PackageNotFound, SdistOnly, Unresolvable, VersionNotFound, Yanked
from flops.formats import requirements as reader
from flops.locking.lock import Locker
from flops.platforms import Platform
from flops.progress import Silent
from flops.recipe import Policy, Recipe
from flops.repair.doctor import LockRequest, find_locks
from flops.repair.pythons import PythonChoice

pytestmark = pytest.mark.integration

BOOKWORM = PythonChoice(version="3.11.2", minor="3.11", glibc=(2, 36), provider="debian", suite="bookworm")
TRIXIE = PythonChoice(version="3.13.5", minor="3.13", glibc=(2, 41), provider="debian", suite="trixie")
X86 = "manylinux_2_17_x86_64"
ARM = "manylinux_2_17_aarch64"
NATIVE = (f"cp36-abi3-{X86}", f"cp36-abi3-{ARM}")


def run(locker: Locker, text, *, path="requirements.txt", policy=Policy.FIX, modules=(), offered=(BOOKWORM,)):
    files = {path: text.encode()}
    request = LockRequest(platforms=tuple(Platform), pythons=offered, recipe=Recipe(policy=policy), reporter=Silent())
    return find_locks(reader.read(files), request, locker=locker, modules=modules, files=files)


def told(resolution):
    return [(a.code, a.package, a.before, a.after, a.where) for a in resolution.adjustments]


def apply(text: str, hint: str) -> str:
    """What `patch` makes of the text, for hunks of whole lines."""
    lines = hint[hint.index("@@") :].splitlines()
    old = [line[1:] for line in lines if line[:1] in {" ", "-"}]
    new = [line[1:] for line in lines if line[:1] in {" ", "+"}]
    before, after = "\n".join(old), "\n".join(new)
    assert before in text
    return text.replace(before, after, 1)


@pytest.fixture
def rivals(shelf):
    """`app` and `tool` disagree about `base` in these versions, and agree in later ones."""
    shelf.add("base", "1.0")
    shelf.add("base", "2.0")
    for name in ("app", "tool"):
        shelf.add(name, "1.0.0", "base<2" if name == "app" else "base>=2")
        shelf.add(name, "1.0.1", "base")
    shelf.add("plain", "1.0")
    return shelf


@pytest.mark.parametrize(("imported", "moved"), [("app", "tool"), ("tool", "app")])
def test_what_the_code_imports_moves_last(rivals, locker: Locker, imported, moved):
    resolution = run(locker, "app==1.0.0\nplain\ntool==1.0.0\n", modules=[f"{imported}.part"])
    line = 1 if moved == "app" else 3
    assert told(resolution) == [("PIN_RELAXED", moved, "==1.0.0", "==1.0.1", f"requirements.txt:{line}")]
    other = f"{imported}==1.0.0 (requirements.txt:{4 - line})"
    assert f"{moved} 1.0.0 conflicts with {other}" in resolution.adjustments[0].reason


def test_of_two_the_one_that_moves_less(shelf, locker: Locker):
    shelf.add("app", "1.0.0", "base<2")
    shelf.add("app", "1.5.0", "base")
    shelf.add("base", "1.9")
    shelf.add("base", "2.0.0")
    shelf.add("base", "2.0.1")
    resolution = run(locker, "app==1.0.0\nbase==2.0.1\n")
    assert told(resolution) == [("PIN_RELAXED", "app", "==1.0.0", "==1.5.0", "requirements.txt:1")]


def test_a_second_pin_of_the_same_package(shelf, locker: Locker):
    shelf.add("app", "1.0")
    shelf.add("app", "2.0")
    resolution = run(locker, "app==1.0\napp==2.0\n", offered=(BOOKWORM, TRIXIE))
    assert told(resolution) == [("PIN_RELAXED", "app", "==1.0", "==2.0", "requirements.txt:1")]
    assert resolution.python == BOOKWORM


def test_what_can_only_move_together_is_unpinned(shelf, locker: Locker):
    for name in ("app", "tool"):
        shelf.add(name, "1.0", "base==1" if name == "app" else "base==2")
        shelf.add(name, "2.0", "base==3", "peer==2")
    for version in ("1", "2", "3"):
        shelf.add("base", version)
    shelf.add("peer", "1")
    shelf.add("peer", "2")
    resolution = run(locker, "app==1.0\ntool==1.0\npeer==2\n")
    assert told(resolution) == [
        ("UNPINNED", "app", "==1.0", "==2.0", "requirements.txt:1"),
        ("UNPINNED", "tool", "==1.0", "==2.0", "requirements.txt:2"),
    ]


def test_a_range_without_versions_takes_the_nearest(shelf, locker: Locker):
    shelf.add("native", "1.0", tags=NATIVE[:1])
    shelf.add("native", "2.0", tags=NATIVE)
    shelf.add("native", "3.0", tags=NATIVE)
    resolution = run(locker, "native<2\n")
    assert told(resolution) == [("PIN_RELAXED", "native", "<2", "==2.0", "requirements.txt:1")]


def test_two_pythons_are_tried_before_a_major_version(shelf, locker: Locker):
    shelf.add("native", "1.0", tags=(f"cp313-cp313-{X86}", f"cp313-cp313-{ARM}"))
    shelf.add("native", "2.0", tags=NATIVE)
    resolution = run(locker, "native==1.0\n", offered=(BOOKWORM, TRIXIE))
    assert resolution.python == TRIXIE


def test_a_version_that_never_was(shelf, locker: Locker):
    shelf.add("plain", "1.26.4")
    shelf.add("plain", "2.0")
    resolution = run(locker, "plain==1.26.9\n", offered=(BOOKWORM, TRIXIE))
    assert told(resolution) == [("PIN_RELAXED", "plain", "==1.26.9", "==1.26.4", "requirements.txt:1")]
    assert "plain 1.26.9 was never published" in resolution.adjustments[0].reason
    with pytest.raises(VersionNotFound) as caught:
        run(locker, "plain==1.26.9\n", policy=Policy.STRICT)
    assert [(f.code, f.where) for f in caught.value.findings] == [("VERSION_NOT_FOUND", "requirements.txt:1")]
    assert apply("plain==1.26.9\n", caught.value.hint) == "plain==1.26.4\n"


def test_yanked_and_source_only(shelf, locker: Locker):
    shelf.add("gone", "1.0", yanked=True)
    shelf.add("gone", "2.0")
    shelf.file("source", "source-1.0.tar.gz", b"")
    with pytest.raises(Yanked) as caught:
        run(locker, "gone<2\n", policy=Policy.STRICT)
    assert caught.value.repairs[0].after == "==2.0"
    with pytest.raises(SdistOnly) as caught:
        run(locker, "gone==2.0\nsource==1.0\n", modules=["source"])
    assert caught.value.repairs == ()
    with pytest.raises(SdistOnly) as caught:
        run(locker, "gone==2.0\nsource==1.0\n", modules=["gone"])
    assert [(a.code, a.package) for a in caught.value.repairs] == [("TAKEN_OUT", "source")]
    assert apply("gone==2.0\nsource==1.0\n", caught.value.hint).strip() == "gone==2.0"


def test_a_misspelt_name_is_proposed_and_not_taken(shelf, locker: Locker):
    shelf.add("numpy", "1.26.4")
    shelf.add("scikit-learn", "1.4.2", "numpy")
    text = "numpy==1.26.9\nscikit-lern==1.4.2  # models\n"
    with pytest.raises(PackageNotFound) as caught:
        run(locker, text, modules=["sklearn"])
    error = caught.value
    assert [(f.code, f.line) for f in error.findings] == [("VERSION_NOT_FOUND", 1), ("PACKAGE_NOT_FOUND", 2)]
    assert [(a.code, a.before, a.after) for a in error.repairs] == [
        ("NAME_CORRECTED", "scikit-lern", "scikit-learn"),
        ("PIN_RELAXED", "==1.26.9", "==1.26.4"),
    ]
    after = apply(text, error.hint)
    assert after == "numpy==1.26.4\nscikit-learn==1.4.2  # models\n"
    assert run(locker, after).adjustments == ()


def test_a_misspelt_name_that_exists_is_not_taken_for_the_one_that_was_meant(shelf, locker: Locker):
    shelf.add("scipy", "1.13.0")
    shelf.add("scfpy", "0.2")
    with pytest.raises(VersionNotFound) as caught:
        run(locker, "scfpy==1.13.0\n", modules=["scipy.stats"])
    assert [(a.code, a.before, a.after) for a in caught.value.repairs] == [("NAME_CORRECTED", "scfpy", "scipy")]
    assert run(locker, "scfpy==0.3\n", modules=["scfpy"]).adjustments[0].after == "==0.2"


def test_a_name_that_nobody_knows_has_no_proposal(shelf, locker: Locker):
    shelf.add("plain", "1.0")
    with pytest.raises(PackageNotFound) as caught:
        run(locker, "plain\nqqqqzzzz==1\n", modules=["qqqqzzzz"])
    assert caught.value.repairs == ()
    assert caught.value.hint == "correct the name, or remove the line"
    with pytest.raises(PackageNotFound) as caught:
        run(locker, "plain\nqqqqzzzz==1\n", modules=["plain"])
    assert [(a.code, a.package) for a in caught.value.repairs] == [("TAKEN_OUT", "qqqqzzzz")]


def test_strict_gives_a_patch_that_locks(shelf, locker: Locker):
    shelf.add("native", "1.0", tags=NATIVE[:1])
    shelf.add("native", "1.1", tags=NATIVE)
    with pytest.raises(NoWheel) as caught:
        run(locker, "native==1.0\n", policy=Policy.STRICT)
    after = apply("native==1.0", caught.value.hint)
    assert after.splitlines() == [
        'native==1.0; platform_machine != "aarch64"',
        'native==1.1; platform_machine == "aarch64"',
    ]
    assert run(locker, after, policy=Policy.STRICT).adjustments == ()
    conda = "dependencies:\n- python=3.11\n- native=1.0\n"
    with pytest.raises(NoWheel) as caught:
        run(locker, conda, path="conda.yaml", policy=Policy.STRICT)
    after = apply(conda, caught.value.hint)
    assert after == "dependencies:\n- python=3.11\n- native=1.1\n"
    assert run(locker, after, path="conda.yaml", policy=Policy.STRICT).adjustments == ()


def test_no_patch_where_it_would_not_lock(shelf, locker: Locker):
    shelf.add("native", "1.0", tags=NATIVE[:1])
    shelf.add("native", "1.1", tags=NATIVE[1:])
    with pytest.raises(NoWheel) as caught:
        run(locker, "dependencies:\n- native=1.0\n", path="conda.yaml", policy=Policy.STRICT)
    assert "write native==1.1 for linux/arm64 (conda.yaml:2)" in caught.value.hint
    assert "+++" not in caught.value.hint


def test_a_conflict_without_a_repair_keeps_its_lines(shelf, locker: Locker):
    shelf.add("app", "1.0", "base<2")
    shelf.add("tool", "1.0", "base>=2")
    for number in range(12):
        shelf.add(f"other{number}", "1.0")
    shelf.add("base", "1.0")
    shelf.add("base", "2.0")
    lines = ["tool", *(f"other{number}==1.0" for number in range(12)), "app==1.0"]
    with pytest.raises(Unresolvable) as caught:
        run(locker, "\n".join(lines), offered=(BOOKWORM, TRIXIE))
    assert [finding.line for finding in caught.value.findings] == [1, 14]


def test_versions_that_differ_and_names_that_look_alike_are_findings(shelf, locker: Locker):
    shelf.add("native", "1.0", tags=NATIVE[:1])
    shelf.add("native", "1.1", tags=NATIVE)
    shelf.add("numsy", "1.0", "numpy")
    shelf.add("numpy", "2.0")
    resolution = run(locker, "native==1.0\nnumsy\n", modules=["numpy"])
    assert [(f.code, f.where) for f in resolution.findings] == [
        ("VERSIONS_DIFFER", "requirements.txt:1"),
        ("NAME_SUSPECT", "requirements.txt:2"),
    ]
    assert "1.0 on linux/amd64, 1.1 on linux/arm64" in resolution.findings[0].message
    assert resolution.findings[1].hint == "did you mean numpy?"
    assert run(locker, "native==1.1\nnumpy\n", modules=["numpy"]).findings == ()
