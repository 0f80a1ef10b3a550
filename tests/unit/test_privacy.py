"""Trackers: taken out where they are required, told with their chain where something else brings them."""

from __future__ import annotations

import pytest
from packaging.utils import canonicalize_name

from flops.contract.structure import ImportedModule
from flops.errors import IndexUnreachable
from flops.formats.requirement import Requirement
from flops.formats.requirements import Requirements
from flops.locking.lock import Lock, LockedWheel
from flops.platforms import Platform
from flops.repair import trackers

AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64


def entry(name: str, line: int, specifier: str = "", *, extras: tuple[str, ...] = (), marker: str = "") -> Requirement:
    return Requirement(
        name=name, specifier=specifier, extras=extras, marker=marker, path="requirements.txt", line=line, text=name
    )


def wanted(*entries: Requirement) -> Requirements:
    return Requirements(path="requirements.txt", python=None, entries=entries)


class Shelf:
    """Stands for wheels' metadata."""

    def __init__(self, **requires: tuple[str, ...]) -> None:
        self.lines = {name.replace("_", "-"): lines for name, lines in requires.items()}
        self.read = 0
        self.failure: Exception | None = None

    def requires(self, wheels):
        self.read += 1
        if self.failure:
            raise self.failure
        return {wheel.sha256: self.lines[wheel.name] for wheel in wheels}

    def lock(self, platform: Platform = AMD64, *, without: tuple[str, ...] = ()) -> Lock:
        wheels = tuple(
            LockedWheel(name=name, version="1", filename=f"{name}.whl", url="http://x", sha256=name, size=1)
            for name in sorted(self.lines)
            if name not in without
        )
        return Lock(platform=platform, python="3.11.2", wheels=wheels)


def brought(shelf: Shelf, *entries: Requirement, locks=None):
    found = trackers.brought(wanted(*entries), locks or {AMD64: shelf.lock()}, shelf)
    return [(one.where, one.message.partition(": it ")[0]) for one in found]


def test_direct_trackers_are_taken_out_and_told():
    before = wanted(entry("numpy", 1), entry("wandb", 2, "==0.16.0"), entry("comet-ml", 3))
    after, adjustments = trackers.without(before)
    assert [one.name for one in after.entries] == ["numpy"]
    assert [(one.code, one.package, one.before, one.after, one.where) for one in adjustments] == [
        ("REMOVED", "wandb", "==0.16.0", "", "requirements.txt:2"),
        ("REMOVED", "comet-ml", "", "", "requirements.txt:3"),
    ]
    assert adjustments[0].reason.startswith("a learner's training is private: wandb sends metrics")


def test_what_does_the_work_itself_is_kept_and_told():
    before = wanted(entry("ultralytics", 4))
    assert trackers.without(before) == (before, ())
    (finding,) = trackers.brought(before, {AMD64: Shelf(ultralytics=()).lock()}, Shelf(ultralytics=()))
    assert (finding.code, finding.where) == ("TRACKER", "requirements.txt:4")
    assert "check that it is switched off" in finding.hint


def test_a_closure_without_trackers_reads_no_metadata():
    shelf = Shelf(numpy=())
    assert brought(shelf, entry("numpy", 1)) == []
    assert shelf.read == 0


def test_the_shortest_chain_is_told_at_the_line_where_it_begins():
    shelf = Shelf(
        trainer=("plots>=1", "helper"),
        plots=("deep",),
        deep=("wandb",),
        helper=("wandb",),
        wandb=("sentry-sdk",),
        sentry_sdk=(),
    )
    assert brought(shelf, entry("numpy", 1), entry("trainer", 2)) == [
        ("requirements.txt:2", "wandb is among the learner's packages (trainer -> helper -> wandb)")
    ]


def test_markers_and_extras_decide_which_edges_there_are():
    shelf = Shelf(
        one=('wandb; sys_platform == "win32"', 'clearml; extra == "track"'),
        two=('one[track]; python_version >= "3.9"',),
        wandb=(),
        clearml=(),
    )
    assert brought(shelf, entry("one", 1)) == []
    assert brought(shelf, entry("one", 1, extras=("track",))) == [
        ("requirements.txt:1", "clearml is among the learner's packages (one -> clearml)")
    ]
    assert brought(shelf, entry("one", 1), entry("two", 2)) == [
        ("requirements.txt:2", "clearml is among the learner's packages (two -> one -> clearml)")
    ]
    assert brought(shelf, entry("two", 2, marker='platform_machine == "aarch64"')) == []


def test_a_chain_of_one_platform_names_it():
    shelf = Shelf(trainer=("wandb; platform_machine == 'aarch64'",), wandb=())
    locks = {AMD64: shelf.lock(without=("wandb",)), ARM64: shelf.lock(ARM64)}
    assert brought(shelf, entry("trainer", 1), locks=locks) == [
        ("requirements.txt:1", "wandb is among the learner's packages on linux/arm64 (trainer -> wandb)")
    ]


def test_a_circle_and_a_line_that_can_not_be_read_end_the_search():
    shelf = Shelf(a=("b", "this is: nothing"), b=("a", "posthog"), posthog=())
    assert brought(shelf, entry("a", 1)) == [
        ("requirements.txt:1", "posthog is among the learner's packages (a -> b -> posthog)")
    ]


def test_without_metadata_it_is_still_told_that_there_is_a_tracker():
    shelf = Shelf(numpy=(), wandb=())
    shelf.failure = IndexUnreachable("gone")
    (finding,) = trackers.brought(wanted(entry("numpy", 1)), {AMD64: shelf.lock()}, shelf)
    assert (finding.code, finding.where) == ("TRACKER", "requirements.txt")
    assert finding.message.startswith("wandb is among the learner's packages: it ")


def test_an_import_of_what_was_taken_out_is_told():
    item = ImportedModule(path="data_manager.py", line=3, name="wandb", module="wandb.sdk")
    (finding,) = trackers.imported([item])
    assert (finding.code, finding.where) == ("TRACKER_IMPORTED", "data_manager.py:3")
    assert finding.message.startswith("wandb.sdk is imported, and a learner has no wandb")


def test_the_data_file_is_sound():
    for name, one in trackers.trackers().items():
        assert name == canonicalize_name(name)
        assert one.what
        assert not one.what.endswith(".")
        assert all(module.isidentifier() for module in one.modules)
    assert {"mlflow", "wandb", "comet-ml", "neptune", "clearml"} <= trackers.trackers().keys()
    assert "datasets" not in trackers.trackers()


@pytest.mark.parametrize("module", ["mlflow", "wandb", "comet_ml", "neptune", "clearml", "aim"])
def test_modules_lead_to_their_trackers(module):
    assert module in trackers.modules()
