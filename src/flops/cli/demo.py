"""`flops demo`: the main job on embedded defaults, on the bundled example."""

from __future__ import annotations

import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import flops
from flops import programs
from flops.cli import options
from flops.cli.build import show
from flops.cli.render import print_json, reporter
from flops.cli.try_ import embedded_registry, train
from flops.errors import EngineMissing
from flops.oci.client import RegistryClient
from flops.oci.engine import find_engine
from flops.platforms import Platform
from flops.publishing.registry_target import RegistryTarget
from flops.settings import Settings
from flops.use_cases.build import build

EXAMPLE = "digits-sklearn"
LEARNERS = 2
ROUNDS = 3
#: The example as a Git repository has the same commit on every machine.
COMMITTER = {
    "GIT_AUTHOR_NAME": "FLOps",
    "GIT_AUTHOR_EMAIL": "flops@localhost",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_NAME": "FLOps",
    "GIT_COMMITTER_EMAIL": "flops@localhost",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}

Train = Annotated[bool, typer.Option("--train/--no-train", help="Federate from the images afterwards.")]


def command(train_too: Train = True, as_json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Build the bundled example for every platform into the embedded registry, then train it in containers."""
    settings = Settings.read()
    out = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="flops-demo-") as place:
        repository = Path(place, EXAMPLE)
        make_repository(repository)
        data = Path(place, "data")
        shutil.copytree(example() / "data", data)
        for path in (Path(place), data, *data.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        request = options.request(str(repository), platforms=[platform.value for platform in Platform])
        rounds = []
        with embedded_registry(settings) as registry:
            with reporter(quiet=quiet) as progress:
                target = RegistryTarget(RegistryClient(registry.registry))
                result = build(request, target, settings=settings, reporter=progress)
            if not as_json:
                show(result, progress)
            try:
                engine = find_engine() if train_too else None
            except EngineMissing as error:
                engine = None
                out.print(Text(f"\n{error.message}: no training. With one, train the example by"))
                out.print(Text("  flops try examples/digits-sklearn --data examples/digits-sklearn/data"))
            if engine is not None:
                rounds = train(engine, registry.registry, result, data, learners=LEARNERS, rounds=ROUNDS, quiet=as_json)
    if as_json:
        print_json({**result.to_json(), "rounds": [one._asdict() for one in rounds]})
    else:
        out.print(Text(f"\nThe images are kept in {settings.data_dir / 'registry'}; `flops build` makes your own."))


def example() -> Path:
    """The bundled example: in an installed distribution beside our resources, in a checkout at its root."""
    installed = Path(str(resources.files("flops"))) / "resources" / "examples" / EXAMPLE
    return installed if installed.is_dir() else Path(flops.__file__).parents[2] / "examples" / EXAMPLE


def make_repository(directory: Path) -> None:
    """The example, without its data, as a Git repository of one commit, the same everywhere."""
    shutil.copytree(example(), directory, ignore=shutil.ignore_patterns("data", "__pycache__"))
    for path in directory.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for words in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message", "The bundled example")):
        programs.run(["git", "-C", directory, *words], seconds=60, env=COMMITTER)
