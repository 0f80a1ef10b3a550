"""docs/operations.md names only what there is."""

import re
from pathlib import Path

from tests.orchestrators import World
from tests.web import Web, open_access
from typer.testing import CliRunner

from flops.cli.main import _application
from flops.service.api import create_app
from flops.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/operations.md").read_text()


def test_variables():
    named = set(re.findall(r"FLOPS_([A-Z_]*[A-Z])\b", TEXT + (ROOT / "docs/flops.service").read_text()))
    assert len(named) > 20
    assert not {name for name in named if name.lower() not in Settings.model_fields}


def test_options():
    told = CliRunner().invoke(_application(["serve"]), ["serve", "--help"], env={"COLUMNS": "200"}).output
    for option in set(re.findall(r"`(--[a-z-]+)", TEXT)):
        assert option in told, option


def test_metrics(tmp_path):
    world = World(tmp_path / "projects.sqlite3")
    text = Web(create_app(world.manager, open_access())).get("/metrics").text
    world.close()
    named = set(re.findall(r"`(flops_[a-z_]+)", TEXT))
    assert len(named) > 10
    told = {name.removesuffix("_total") for name in re.findall(r"# TYPE (\S+)", text)}
    assert {name.removesuffix("_total") for name in named} <= told
