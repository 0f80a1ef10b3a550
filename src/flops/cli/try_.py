"""`flops try`: build for this machine, then federate locally in containers."""

from __future__ import annotations

import socket
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.text import Text

from flops.actors import Actor
from flops.cli import options
from flops.cli.build import show
from flops.cli.containers import ContainerFederation, check_data, federate
from flops.cli.render import megabytes, plain, print_json, reporter
from flops.errors import EngineMissing, UsageError
from flops.oci.client import RegistryClient
from flops.oci.engine import PROCESSES, Engine, Limits, find_engine
from flops.platforms import Platform
from flops.publishing.registry_target import RegistryTarget
from flops.recipe import Accelerator, Compression, Policy
from flops.registry.app import EmbeddedRegistry
from flops.settings import Settings
from flops.use_cases.build import build

if TYPE_CHECKING:
    from flops.oci.reference import Registry
    from flops.use_cases.result import Result
    from flops_wire.rounds import Round

#: The embedded registry's port; another free one where it is taken.
PORT = 5073
#: Bytes that can be meant as a container's memory or /tmp.
LEAST_SIZE = 16 * 1000**2

Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="Parquet files, named TAG.ANYTHING.parquet.")]
Learners = Annotated[
    int, typer.Option("--learners", metavar="N", min=1, max=64, help="How many learners share the data.")
]
Rounds = Annotated[int, typer.Option("--rounds", metavar="N", min=1, max=10_000, help="Training rounds.")]
Memory = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", help="Of each container, as 2GB [default: a share of this machine's]."),
]
Tmp = Annotated[
    str | None, typer.Option("--tmp", metavar="SIZE", help="Of each container's /tmp [default: half of its memory].")
]
Processes = Annotated[
    int, typer.Option("--processes", metavar="N", min=64, help="Processes and threads of each container.")
]
Logs = Annotated[bool, typer.Option("--logs", help="Show the actors' output.")]


def command(
    source: options.SourceArgument,
    data: Data,
    learners: Learners = 2,
    rounds: Rounds = 3,
    ref: options.Ref = None,
    subdir: options.Subdir = "",
    flavor: options.FlavorOption = None,
    python: options.Python = None,
    policy: options.PolicyOption = Policy.FIX,
    accelerator: options.AcceleratorOption = Accelerator.CPU,
    compression: options.CompressionOption = Compression.GZIP,
    base_image: options.BaseImage = None,
    upgrade: options.Upgrade = False,
    memory: Memory = None,
    tmp: Tmp = None,
    processes: Processes = PROCESSES,
    logs: Logs = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Build for this machine and train on DIR in containers: an aggregator and N learners with disjoint data."""
    settings = Settings.read()
    limits = Limits.share(learners + 1, memory=_size("--memory", memory), tmp=_size("--tmp", tmp), processes=processes)
    check_data(data)
    engine = find_engine()
    request = options.request(
        source,
        ref=ref,
        subdir=subdir,
        flavor=flavor,
        python=python,
        policy=policy,
        accelerator=accelerator,
        compression=compression,
        base_image=base_image,
        upgrade=upgrade,
    )
    with embedded_registry(settings) as registry:
        with reporter(quiet=quiet) as progress:
            result = build(
                request, RegistryTarget(RegistryClient(registry.registry)), settings=settings, reporter=progress
            )
        if not as_json:
            show(result, progress)
        done = train(
            engine,
            registry.registry,
            result,
            data,
            learners=learners,
            rounds=rounds,
            limits=limits,
            logs=logs,
            quiet=as_json,
        )
    if as_json:
        print_json({**result.to_json(), "limits": asdict(limits), "rounds": [one._asdict() for one in done]})


def embedded_registry(settings: Settings) -> EmbeddedRegistry:
    """On its usual port, or on a free one where that is taken."""
    port = PORT if _free(PORT) else 0
    return EmbeddedRegistry(settings.data_dir / "registry", port=port)


def train(
    engine: Engine,
    registry: Registry,
    result: Result,
    data: Path,
    *,
    learners: int,
    rounds: int,
    limits: Limits | None = None,
    logs: bool = False,
    quiet: bool = False,
) -> list[Round]:
    """Pull both images by digest and federate; rounds are printed as they end."""
    limits = limits or Limits.share(learners + 1)
    host = Platform.host()
    if host is None:
        raise EngineMissing("no image of ours runs on this machine", hint="run them on linux/amd64 or linux/arm64")
    names = {}
    for actor, image in result.images.items():
        repository = image.reference.partition("/")[2].rpartition(":")[0]
        names[actor] = f"{registry.host}/{repository}@{image.platforms[host].digest}"
        engine.pull(names[actor], plain_http=True)
    out, err = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
    if not quiet:
        out.print(Text(f"\n{learners} learners and an aggregator in {engine.program}, {rounds} rounds"))
        out.print(
            Text(
                f"each with {megabytes(limits.memory)} of memory, {megabytes(limits.tmp)} of it in /tmp, and "
                f"{limits.processes} processes at most; they reach each other and nothing else"
            )
        )

    def on_round(one: Round) -> None:
        if not quiet:
            out.print(Text(one.line()))

    def on_line(actor: str, line: str) -> None:
        if logs or actor == engine.program:
            err.print(Text(f"{actor}: {plain(line)}"))

    return federate(
        ContainerFederation(
            engine=engine,
            learner=names[Actor.LEARNER],
            aggregator=names[Actor.AGGREGATOR],
            data=data,
            learners=learners,
            rounds=rounds,
            limits=limits,
            on_line=on_line,
            on_round=on_round,
        )
    )


def _size(option: str, text: str | None) -> int | None:
    """Bytes of `2GB` or `512MiB`."""
    if text is None:
        return None
    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = 0
    if size < LEAST_SIZE:
        raise UsageError(
            f"{option} {text!r} is no size of {megabytes(LEAST_SIZE)} or more", hint=f"for example {option} 2GB"
        )
    return size


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
