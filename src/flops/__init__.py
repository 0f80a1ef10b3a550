"""FLOps image builder: from an ML Git repository to federated-learning images for every platform.

`flops.check(source, ...)`, `flops.build(source, ...)` and `flops.Registry` are its Python API (use_cases/python_api.py).
"""

from typing import TYPE_CHECKING, Any

from flops.version import __version__

if TYPE_CHECKING:
    from flops.oci.reference import Registry
    from flops.use_cases.python_api import build, check

__all__ = ["Registry", "__version__", "build", "check"]


def __getattr__(name: str) -> Any:
    """The API is imported when it is used: a command line that starts must not wait for all of it."""
    if name not in {"build", "check", "Registry"}:
        raise AttributeError(f"module 'flops' has no attribute {name!r}")
    from flops.use_cases import python_api  # noqa: PLC0415

    return getattr(python_api, name)
