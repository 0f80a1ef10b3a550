"""A room imports only rooms below it (ARCHITECTURE.md, "The house")."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
FOUNDATION = {
    "flops.errors",
    "flops.platforms",
    "flops.recipe",
    "flops.process",
    "flops.lifeline",
    "flops.lifeline_child",
    "flops.progress",
    "flops.broker",
    "flops.http",
    "flops.connections",
    "flops.throttle",
    "flops.settings",
    "flops",
}
ROOMS = {  # room: the rooms of ours that it may import beside itself and the foundation
    "flops.oci": set(),
    "flops.builder": {"flops.oci", "flops_wire"},
    "flops.job": {"flops.oci", "flops.builder", "flops_wire"},
    # of the builder only the two questions that a manager asks: which commit, and what stands already
    "flops.manager": {"flops.oci", "flops.builder.lookup", "flops_wire"},
    "flops.observer": {"flops_wire"},
    "flops.cli": {"flops.oci", "flops.builder", "flops.job", "flops.manager", "flops.observer", "flops_wire"},
    "flops_wire": set(),
    "flops_actor": {"flops_wire"},
    "flops_worker": {"flops_wire", "flops_utils"},
}
#: Inside the builder, bottom to top: a room or file imports only what stands before it. The jobs stand above them all.
BUILDER = [
    *("limits", "sandbox", "files", "clock", "quote", "aside", "shared_cache"),
    *("repository", "request", "contract", "locking", "formats", "wheels", "layer_records", "dependencies"),
    *("rootfs", "foundation", "runtime", "images", "records", "publishing", "housekeeping"),
]
JOBS = {"build", "provision", "preflight", "result", "lookup", "base_images", "builder_image"}
FILES = sorted(SOURCE.rglob("*.py"))


def module(path):
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_file_imports_only_rooms_below_it(path):
    name = module(path)
    ours = {target for target in imported(path) if target.split(".")[0].startswith("flops")}
    if name in FOUNDATION:
        assert {
            target
            for target in ours
            if not any(target == f or target.startswith(f + ".") for f in FOUNDATION - {"flops"})
        } <= {"flops"}
        return
    room = next(room for room in ROOMS if name == room or name.startswith(room + "."))
    below = ROOMS[room] | {room} | (FOUNDATION - {"flops"} if room.startswith("flops.") else set())
    wrong = {
        t for t in ours - {"flops", "flops.__version__"} if not any(t == b or t.startswith(b + ".") for b in below)
    }
    assert not wrong, f"{name} must not import {sorted(wrong)}"


def place(name):
    """Where something of the builder lies: its room, or its own name."""
    return name.removeprefix("flops.builder.").split(".")[0]


@pytest.mark.parametrize("path", [path for path in FILES if module(path).startswith("flops.builder.")], ids=module)
def test_inside_the_builder_too(path):
    here = place(module(path))
    targets = {place(target) for target in imported(path) if target.startswith("flops.builder.")} - {here}
    below = {*BUILDER, *JOBS} if here in JOBS else set(BUILDER[: BUILDER.index(here)])
    assert targets <= below, f"{module(path)} must not import {sorted(targets - below)}"


def test_the_builder_has_no_room_that_is_not_listed():
    there = {
        path.stem for path in (SOURCE / "flops/builder").iterdir() if path.name not in {"__init__.py", "__pycache__"}
    }
    assert there == {*BUILDER, *JOBS}


def test_there_are_files_to_check():
    assert len(FILES) > 10


def test_errors_import_the_standard_library_only():
    assert {target.split(".")[0] for target in imported(SOURCE / "flops/errors.py")} <= {
        "__future__",
        "dataclasses",
        "typing",
        "collections",
    }
