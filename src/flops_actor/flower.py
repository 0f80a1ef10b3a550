"""Flower's programs and files, as the launchers use them; what is known of their behaviour stands here."""

from __future__ import annotations

import os
import socket
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from flops_actor.arguments import Endpoint
    from flops_actor.life import Children
    from flops_actor.places import Places

LINK = "local"
_PROJECT = """\
    [build-system]
    requires = ["hatchling"]
    build-backend = "hatchling.build"

    [project]
    name = "federation"
    version = "1.0.0"
    description = "Averages a model over its learners"
    license = "Apache-2.0"
    dependencies = []

    [tool.hatch.build.targets.wheel]
    packages = ["."]

    [tool.flwr.app]
    publisher = "flops"

    [tool.flwr.app.components]
    serverapp = "federation.aggregator:app"
    clientapp = "federation.learner:app"

    [tool.flwr.app.config]
"""
#: Glue only: the app travels from the link to the nodes, and its real content lies in their images.
_FILES = {
    "pyproject.toml": textwrap.dedent(_PROJECT),
    "federation/__init__.py": "",
    "federation/aggregator.py": "from flops_actor.aggregator_app import app\n\n__all__ = ['app']\n",
    "federation/learner.py": "from flops_actor.learner_app import app\n\n__all__ = ['app']\n",
}


def environment(scratch: Path, places: Places, **extra: str) -> dict[str, str]:
    """Flower starts its own programs by bare name, and writes below FLWR_HOME."""
    return {
        **os.environ,
        "PATH": f"{places.programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "FLWR_HOME": str(scratch / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        # a task waits half of this before its process is started; Flower's default is a second
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "PYTHONUNBUFFERED": "1",  # what the run says is read while it runs
        **extra,
    }


def start_link(children: Children, places: Places, env: dict[str, str], port: int) -> subprocess.Popen[bytes]:
    return children.start(
        [
            places.programs / "flower-superlink",
            "--insecure",
            "--disable-runtime-dependency-installation",
            *("--host", "0.0.0.0"),  # noqa: S104 - learners connect from other machines
            *("--port", str(port)),
        ],
        env=env,
    )


def start_node(
    children: Children, places: Places, env: dict[str, str], aggregator: Endpoint, port: int
) -> subprocess.Popen[bytes]:
    """`port`: of the node's own API, which only its own processes use; 0 for a free one."""
    return children.start(
        [
            places.programs / "flower-supernode",
            "--insecure",
            *("--superlink", str(aggregator)),
            *("--host", "127.0.0.1"),
            *("--port", str(port or free_port())),
        ],
        env=env,
    )


def start_run(
    children: Children, places: Places, env: dict[str, str], scratch: Path, port: int
) -> subprocess.Popen[bytes]:
    """Submit the federation to the link on this machine; the process ends when the run does."""
    home = scratch / "flwr"
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{LINK}"\n\n[superlink.{LINK}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    app = scratch / "app"
    for name, text in _FILES.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text)
    return children.start([places.programs / "flwr", "run", app, LINK, "--stream"], env=env)


def reachable(where: Endpoint, seconds: float = 2.0) -> bool:
    """Whether somebody listens there; nothing is said to them."""
    try:
        socket.create_connection((where.host, where.port), timeout=seconds).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
