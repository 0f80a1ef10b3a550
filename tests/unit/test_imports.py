"""A room imports only rooms below it, and nothing goes in circles (ARCHITECTURE.md, "The house")."""

import ast
from collections import Counter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
#: Bottom to top: a room, or a file beside the rooms, imports only what stands before it.
ROOMS = [
    *("version", "errors", "platforms", "recipe", "lifeline_child", "lifeline", "programs", "progress", "settings"),
    *("files", "addresses", "sandbox", "http", "throttle", "connections"),
    *("oci", "registry", "store", "repository", "request", "contract", "locking", "formats", "wheels", "repair"),
    *("base", "actors", "images", "records", "publishing", "prune", "use_cases"),
    *("job", "compat", "observer", "orchestrators", "service", "cli"),
]
GROUND = set(ROOMS[: ROOMS.index("oci")])
#: The service starts builders and knows no more of them than the answers to two questions; people's views know no service.
NARROW = {
    "orchestrators": {"oci"},
    "observer": set(),
    "service": {"oci", "use_cases.lookup", "compat.broker", "orchestrators", "observer"},
}
#: What goes into images, and what goes between processes, stands alone.
ALONE = {"flops_wire": set(), "flops_actor": {"flops_wire"}, "flops_worker": {"flops_wire", "flops_utils"}}
FILES = sorted(SOURCE.rglob("*.py"))


def module(path):
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


def imported(path):
    """Modules of ours that a file imports anywhere in it, for type checking too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module or "" for name in inner]
        else:
            continue
        yield from (name for name in names if name.split(".")[0].startswith("flops"))


GRAPH = {name: {target for target in imported(path) if target != name} for name, path in MODULES.items()}


def room(name):
    return name.split(".")[1]


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("flops.")])
def test_a_room_imports_only_rooms_below_it(name):
    here = room(name)
    targets = {target.removeprefix("flops.") for target in GRAPH[name] if target.startswith("flops.")}
    below = {*ROOMS[: ROOMS.index(here)], here}
    if here in NARROW:
        below = {here, *GROUND, *NARROW[here]}
    wrong = {t for t in targets if not any(t == b or t.startswith(f"{b}.") for b in below)}
    assert not wrong, f"{name} must not import {sorted(wrong)}"


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("flops.") and name != "flops"])
def test_what_goes_into_images_knows_nothing_of_the_builder(name):
    here = name.split(".")[0]
    assert {target.split(".")[0] for target in GRAPH[name]} <= {here, *ALONE[here]}


def test_every_room_is_listed():
    there = {
        path.stem for path in (SOURCE / "flops").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert there - {"__init__"} <= set(ROOMS)


def test_no_module_imports_itself_over_others():
    """What imports nothing of the rest, or is imported by nothing of it, is taken away until only circles are left."""
    rest = set(GRAPH)
    while rest != (kept := {n for n in rest if GRAPH[n] & rest and any(n in GRAPH[other] for other in rest)}):
        rest = kept
    assert not rest, f"circles among {sorted(rest)}"


def test_no_two_modules_share_a_name():
    # a command's file is named after the use case that it calls
    names = Counter(path.stem for name, path in MODULES.items() if not name.startswith("flops.cli."))
    assert {name for name, count in names.items() if count > 1} == {"__init__"}


def test_no_two_public_classes_share_a_name():
    names = Counter(
        node.name
        for path in FILES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not {name for name, count in names.items() if count > 1}


def test_no_room_holds_more_than_a_quarter_of_the_lines():
    lines = Counter()
    for name, path in MODULES.items():
        if name.startswith("flops."):
            lines[room(name)] += len(path.read_text().splitlines())
    largest, count = lines.most_common(1)[0]
    assert count * 4 <= lines.total(), f"{largest} has {count} of {lines.total()} lines"


def test_errors_import_the_standard_library_only():
    allowed = {"__future__", "dataclasses", "typing", "collections"}
    for node in ast.walk(ast.parse((SOURCE / "flops/errors.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] in allowed
        elif isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
