"""A container engine of this machine (podman or docker): load and pull images, run containers in the foreground."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flops import programs
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
CONFINED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--log-driver", "none")
#: Processes and threads of one container: Flower and numeric libraries start some hundred.
PROCESSES = 2048
#: Bytes of memory with which an actor can still start.
LEAST_MEMORY = 1024**3
#: Seconds for which a network is held, should nobody remove it.
HELD = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one container may take of the machine."""

    memory: int
    """Bytes, with what lies in /tmp; nothing is swapped."""
    tmp: int
    """Bytes in /tmp."""
    processes: int = PROCESSES
    """Threads count as well."""

    @classmethod
    def share(
        cls, containers: int, *, memory: int | None = None, tmp: int | None = None, processes: int = PROCESSES
    ) -> Limits:
        """What is not given: an even share of this machine's memory, which keeps one share; half of it for /tmp."""
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = memory or max(LEAST_MEMORY, machine // (containers + 1))
        return cls(memory=memory, tmp=tmp or memory // 2, processes=processes)

    @property
    def words(self) -> list[str]:
        """The engine's options."""
        memory = str(self.memory)
        words = ["--memory", memory, "--memory-swap", memory, "--pids-limit", str(self.processes)]
        return [*words, "--tmpfs", f"/tmp:size={self.tmp}"]  # noqa: S108


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

    def hold_network(self, reference: str, *, name: str, limits: Limits) -> list[str]:
        """Start a container that does nothing but hold a network, loopback alone, which others join by its name.

        Finds the options with which a container of this image starts here. What the engine warned of, such as limits
        that it can't keep; EngineFailed where no container starts.
        """
        said = [""]
        sleep = ("-c", f"import time; time.sleep({HELD})")
        for variant in VARIANTS:
            words = self._run_words(
                reference, sleep, variant=variant, network="none", limits=limits, name=name, entrypoint="python"
            )
            words[2:2] = ["--detach", "--stop-signal", "SIGKILL"]
            done = programs.run(words, seconds=120, check=False, env=_engine_environment())
            said = done.stderr.strip().splitlines() or said
            if done.code == 0:
                self.variant = variant
                return done.stderr.strip().splitlines()
            self.remove(name)
        raise EngineFailed(
            f"{self.program} can't start a container: {said[-1][:300]}",
            hint=f"see whether '{self.program} run --rm {shlex.join(limits.words)} {reference} --help' works on this machine",
        )

    def start(
        self,
        reference: str,
        arguments: Sequence[str],
        *,
        name: str,
        network: str,
        limits: Limits,
        on_line: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
        mounts: Mapping[Path, str] | None = None,
    ) -> programs.Running:
        """Run a container, confined, in the foreground, in a network that `hold_network` named.

        `mounts` are read-only: host -> inside.
        """
        words = self._run_words(
            reference,
            arguments,
            variant=self.variant or (),
            network=f"container:{network}",
            limits=limits,
            name=name,
            environment=environment,
            mounts=mounts,
        )
        return programs.Running(words, on_line=on_line, env=_engine_environment())

    def remove(self, name: str) -> None:
        """Stop and remove a container, if it is there; after Ctrl-C too."""
        words = [self.program, "rm", "--force", "--volumes", name]
        with contextlib.suppress(FlopsError):
            programs.run(words, seconds=60, check=False, env=_engine_environment(), cancelled=True)

    def _run_words(
        self,
        reference: str,
        arguments: Sequence[str],
        *,
        variant: tuple[str, ...],
        network: str,
        limits: Limits,
        name: str | None = None,
        entrypoint: str | None = None,
        environment: Mapping[str, str] | None = None,
        mounts: Mapping[Path, str] | None = None,
    ) -> list[str]:
        words = [self.program, "run", "--rm", "--pull=never", f"--network={network}"]
        words += [*CONFINED, *limits.words, *variant]
        words += ["--name", name] if name else []
        words += ["--entrypoint", entrypoint] if entrypoint else []
        for key, value in (environment or {}).items():
            words += ["--env", f"{key}={value}"]
        for host, inside in (mounts or {}).items():
            words += ["--volume", f"{host}:{inside}:ro"]
        return [*words, reference, *arguments]

    def _do(self, *arguments: str) -> str:
        done = programs.run([self.program, *arguments], seconds=DEADLINE, check=False, env=_engine_environment())
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
            if programs.run([program, "info"], seconds=60, check=False, env=_engine_environment()).code == 0:
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
