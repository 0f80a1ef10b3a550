"""Checks an image before it is pushed: which packages overwrite each other's files."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from flops.actors import ML, site_packages
from flops.errors import LayerConflict
from flops.images.plan import WheelsLayer
from flops.progress import Stage
from flops.wheels.wheel_layer import PathConflict, WheelLayer, environment_conflicts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flops.contract.structure import ImportedModule
    from flops.images.plan import ImagePlan, PlannedLayer
    from flops.oci.layer import Layer
    from flops.progress import Reporter

#: Conflicts that one message names.
_NAMED = 5


def check_packages(
    plan: ImagePlan, made: Mapping[PlannedLayer, Layer], *, imports: Sequence[ImportedModule], reporter: Reporter
) -> None:
    """LayerConflict where a module that the repository imports is overwritten by another package; else a warning.

    Real packages collide on files that nobody imports, such as `tests/__init__.py`: then the last by name wins.
    """
    modules = {item.name for item in imports if item.reached}
    found: set[PathConflict] = set()
    for layers in plan.images.values():
        planned = [layer for layer in layers if isinstance(layer, WheelsLayer) and layer.prefix == ML]
        prefix = f"{site_packages(ML, planned[0].python)}/" if planned else ""
        of_wheels = [layer for layer in (made[one] for one in planned) if isinstance(layer, WheelLayer)]
        conflicts = [*(one for layer in of_wheels for one in layer.conflicts), *environment_conflicts(of_wheels)]
        serious = [one for one in conflicts if _module(one.path, prefix) in modules]
        if serious:
            first = serious[0]
            raise LayerConflict(
                f"{first.kept} and {first.left_out} both have {first.path.removeprefix(prefix)}, "
                "with different content, and the repository imports that module",
                hint="remove one of the two packages from the requirements",
            )
        found.update(conflicts)
    _warn(found, reporter)


def _module(path: str, prefix: str) -> str | None:
    """The top-level module that a file belongs to; None for scripts, data and metadata."""
    if not path.startswith(prefix) or not path.endswith((".py", ".so")):
        return None
    return path.removeprefix(prefix).partition("/")[0].partition(".")[0]


def _warn(conflicts: Iterable[PathConflict], reporter: Reporter) -> None:
    by_pair: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in sorted(conflicts, key=lambda one: (one.kept, one.left_out, one.path)):
        by_pair[one.kept, one.left_out].append(one.path.rpartition("/site-packages/")[2])
    for (kept, lost), paths in by_pair.items():
        more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
        reporter.warning(Stage.VERIFY, f"{kept[:100]} overwrites {', '.join(paths[:_NAMED])}{more} of {lost[:100]}")
