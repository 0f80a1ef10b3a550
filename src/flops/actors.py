"""What goes into the learner and the aggregator image beside the user's own part (docs/images.md)."""

from __future__ import annotations

from enum import Enum
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from flops.oci.entries import Directory, Entry, File, Link

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flops.recipe import Flavor
    from flops.repository.tree_writer import RepositoryFile

RUNTIME = "opt/flops/runtime"
ML = "opt/flops/ml"
REPOSITORY = "opt/flops/repo"
ACTOR = "opt/flops/actor"
#: The user and group that actors run as; owns the repository's files.
USER = 65532
#: The port at which an aggregator listens.
AGGREGATOR_PORT = 8080


class Actor(Enum):
    """The two FL actors, as image names spell them."""

    LEARNER = "learner"
    AGGREGATOR = "aggregator"


def site_packages(prefix: str, minor: str) -> str:
    return f"{prefix}/lib/python{minor}/site-packages"


def environment_skeleton(prefix: str, interpreter: str, minor: str) -> tuple[Entry, ...]:
    """What makes a directory a Python environment: links to the base's interpreter and `pyvenv.cfg` (PEP 405)."""
    home = interpreter.rpartition("/")[0]
    settings = f"home = {home}\ninclude-system-site-packages = false\nversion = {minor}\n"
    return (
        *(Link(path=f"{prefix}/bin/{name}", target=interpreter) for name in ("python", "python3", f"python{minor}")),
        File(path=f"{prefix}/pyvenv.cfg", data=settings.encode()),
    )


def shims(interpreter: str, minor: str, *, ml_interpreter: str = "", ml_minor: str = "") -> tuple[Entry, ...]:
    """Our own packages for both environments, and the environments' skeletons; the ML environment may have its own Python."""
    runtime, ml = site_packages(RUNTIME, minor), site_packages(ML, ml_minor or minor)
    return (
        *environment_skeleton(RUNTIME, interpreter, minor),
        *environment_skeleton(ML, ml_interpreter or interpreter, ml_minor or minor),
        *_package("flops_wire", f"{runtime}/flops_wire"),
        *_package("flops_actor", f"{runtime}/flops_actor"),
        *_package("flops_wire", f"{ml}/flops_wire"),
        *(entry for entry in _package("flops_worker", f"{ml}/flops_worker") if "/compat/" not in entry.path),
        *_package("flops_worker", f"{ml}/flops_utils", below="compat/flops_utils"),
    )


def main_file(actor: Actor) -> tuple[Entry, ...]:
    """The actor's own layer: `main.py`, so that `python main.py ARGS` works as FLOps starts it."""
    text = (
        f'"""Starts this image\'s actor: python main.py ARGS (python main.py --help lists them)."""\n\n'
        f"import sys\n\nfrom flops_actor import {actor.value}\n\n"
        f'if __name__ == "__main__":\n    sys.exit({actor.value}.main())\n'
    )
    return (File(path=f"{ACTOR}/main.py", data=text.encode()),)


def repository(root: Path, files: Sequence[RepositoryFile]) -> tuple[Entry, ...]:
    """The user's files, alone, as they lie under `root`; all of them belong to the actor's user."""
    directories = {REPOSITORY}
    for file in files:
        parts = file.path.split("/")[:-1]
        directories |= {"/".join((REPOSITORY, *parts[: count + 1])) for count in range(len(parts))}
    entries: list[Entry] = [Directory(path=path, owner=USER) for path in sorted(directories)]
    for file in files:
        path = f"{REPOSITORY}/{file.path}"
        if file.link is not None:
            entries.append(Link(path=path, target=file.link))
        else:
            entries.append(File(path=path, data=root / file.path, executable=file.executable, owner=USER))
    return tuple(entries)


def environment(flavor: Flavor | None, base: Mapping[str, str]) -> dict[str, str]:
    """The image's environment variables; a base image's own come first and are overridden."""
    inherited = base.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    caches = {
        name: f"/tmp/cache/{folder}"  # noqa: S108 - inside the image, a tmpfs
        for name, folder in (
            ("XDG_CACHE_HOME", "xdg"),
            ("HF_HOME", "huggingface"),
            ("TORCH_HOME", "torch"),
            ("KERAS_HOME", "keras"),
            ("MPLCONFIGDIR", "matplotlib"),
            ("NUMBA_CACHE_DIR", "numba"),
            ("SCIKIT_LEARN_DATA", "scikit-learn"),
        )
    }
    ours = {
        "PATH": f"/{RUNTIME}/bin:{inherited}",
        "HOME": "/home/flops",
        "LANG": "C.UTF-8",
        "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
        "FLWR_HOME": "/tmp/flwr",  # noqa: S108
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        **caches,
    }
    if flavor is not None:
        ours["ML_MODEL_FLAVOR"] = flavor.value
    # PYTHON* of a base image (PYTHONPATH, PYTHONHOME) would break the isolation of the two environments
    kept = {name: value for name, value in base.items() if not name.startswith("PYTHON")}
    return {**kept, **ours}


def _package(name: str, target: str, *, below: str = "") -> Iterator[Entry]:
    """The source files of one of our packages, as this distribution holds them."""
    root = Path(str(resources.files(name))) / below
    for source in sorted(root.rglob("*.py")):
        yield File(path=f"{target}/{source.relative_to(root).as_posix()}", data=source.read_bytes())
