"""A container engine of this machine (podman or docker): load and pull images, run containers in the foreground."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flops import process
from flops.errors import EngineFailed, EngineMissing, FlopsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

#: Seconds that loading or pulling an image may take.
DEADLINE = 600.0
ENGINES = ("podman", "docker")
#: What containers may need on small or nested hosts, tried in this order until a container starts.
VARIANTS: tuple[tuple[str, ...], ...] = ((), ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:1000"))
#: How an actor image is to be run: nothing writable but /tmp, no privileges to gain, and no log on this disk: what it prints
#: is read while it runs, and may be without end.
CONFINED = (
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"),  # noqa: S108
    *("--security-opt", "no-new-privileges", "--log-driver", "none"),
)


@dataclass(kw_only=True)
class Engine:
    """`program` is podman or docker; `variant` the options that this host turned out to need."""

    program: str
    variant: tuple[str, ...] | None = field(default=None)

    def load(self, archive: Path) -> None:
        """Load an image from an archive (OCI layout or docker's own form, in one file)."""
        self._do("load", "--input", str(archive))

    def pull(self, reference: str, *, plain_http: bool, platform: str | None = None) -> None:
        options = ["--tls-verify=false"] if plain_http and self.program == "podman" else []
        options += ["--platform", platform] if platform else []
        self._do("pull", "--quiet", *options, reference)

    def digest(self, reference: str) -> list[str]:
        """The repository digests that the engine knows an image by."""
        document = json.loads(self._do("image", "inspect", reference))
        return [str(name) for name in document[0].get("RepoDigests") or []]

    def probe(self, reference: str) -> None:
        """Find the options with which a container of this image starts here; EngineFailed where none does."""
        if self.variant is not None:
            return
        said = ""
        for variant in VARIANTS:
            words = self._run_words(reference, ("-c", "pass"), variant=variant, entrypoint="python")
            done = process.run(words, seconds=120, check=False, env=_engine_environment())
            if done.code == 0:
                self.variant = variant
                return
            said = (done.stderr.strip().splitlines() or [said])[-1]
        raise EngineFailed(
            f"{self.program} can't start a container: {said[:300]}",
            hint=f"see whether '{self.program} run --rm {reference} --help' works on this machine",
        )

    def start(
        self,
        reference: str,
        arguments: Sequence[str],
        *,
        name: str,
        on_line: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
        mounts: Mapping[Path, str] | None = None,
    ) -> process.Running:
        """Run a container on the host's network, confined, in the foreground; `mounts` are read-only: host -> inside."""
        words = self._run_words(
            reference, arguments, variant=self.variant or (), name=name, environment=environment, mounts=mounts
        )
        return process.Running(words, on_line=on_line, env=_engine_environment())

    def remove(self, name: str) -> None:
        """Stop and remove a container, if it is there."""
        with contextlib.suppress(FlopsError):
            process.run(
                [self.program, "rm", "--force", "--volumes", name], seconds=60, check=False, env=_engine_environment()
            )

    def _run_words(
        self,
        reference: str,
        arguments: Sequence[str],
        *,
        variant: tuple[str, ...],
        name: str | None = None,
        entrypoint: str | None = None,
        environment: Mapping[str, str] | None = None,
        mounts: Mapping[Path, str] | None = None,
    ) -> list[str]:
        words = [self.program, "run", "--rm", "--pull=never", "--network=host", *CONFINED, *variant]
        words += ["--name", name] if name else []
        words += ["--entrypoint", entrypoint] if entrypoint else []
        for key, value in (environment or {}).items():
            words += ["--env", f"{key}={value}"]
        for host, inside in (mounts or {}).items():
            words += ["--volume", f"{host}:{inside}:ro"]
        return [*words, reference, *arguments]

    def _do(self, *arguments: str) -> str:
        done = process.run([self.program, *arguments], seconds=DEADLINE, check=False, env=_engine_environment())
        if done.code != 0:
            said = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise EngineFailed(f"{self.program} {arguments[0]} failed: {said[0][:500]}")
        return done.stdout


def find_engine() -> Engine:
    """podman where it is installed, else docker where its daemon answers; EngineMissing otherwise."""
    for program in ENGINES:
        if shutil.which(program) is None:
            continue
        with contextlib.suppress(FlopsError):
            if process.run([program, "info"], seconds=60, check=False, env=_engine_environment()).code == 0:
                return Engine(program=program)
    raise EngineMissing(
        "neither podman nor a docker daemon answers on this machine",
        hint="install podman, or copy the images elsewhere: skopeo copy reads an OCI layout",
    )


def _engine_environment() -> dict[str, str]:
    """Engines find their storage, sockets and rootless set-up through these variables of their user's session."""
    names = ("HOME", "USER", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "DBUS_SESSION_BUS_ADDRESS")
    more = (
        "DOCKER_HOST",
        "DOCKER_CONFIG",
        "DOCKER_CONTEXT",
        "CONTAINER_HOST",
        "CONTAINERS_CONF",
        "CONTAINERS_STORAGE_CONF",
    )
    return {name: os.environ[name] for name in (*names, *more) if name in os.environ}
