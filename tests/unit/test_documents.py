"""The documents name only what there is."""

import re
from pathlib import Path

import pytest
from tests.orchestrators import World
from tests.web import Web, open_access
from typer.testing import CliRunner

from flops.cli.main import _application
from flops.service.api import create_app
from flops.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SOURCES = sorted(
    [*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/*/test_*.py"), *ROOT.glob("bench/*.py"), *ROOT.glob("scripts/*")]
)
TEXT = (ROOT / "docs/service.md").read_text()


def headings(document):
    return set(re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(document):
    text = re.sub(r"New file `[^`]+`", "", document.read_text())
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (document.parent / target).exists(), target
    for path in re.findall(r"`((?:src|docs|tests|scripts|bench|examples|requirements)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`([a-z_]+/[a-z_]+\.(?:py|toml))`", text):
        assert any((place / path).exists() for place in (ROOT, ROOT / "src", ROOT / "src/flops")), path
    for page, heading in re.findall(r'([\w./-]+\.md), "([^"]+)"', text):
        assert heading in headings(ROOT / page), (page, heading)


def test_what_sources_say_of_documents():
    found = 0
    for source in SOURCES:
        text = source.read_text()
        for page, heading in re.findall(r'((?:docs/[\w/-]+|[A-Z]+)\.md), "([^"]+)"', text):
            found += 1
            assert heading in headings(ROOT / page), (source, page, heading)
        for page, decision in re.findall(r"(docs/[\w/-]+\.md), (D\d+)", text):
            found += 1
            assert f"**{decision}." in (ROOT / page).read_text(), (source, decision)
    assert found > 10


def test_every_room_is_on_the_map():
    rooms = {f"{path.parent.name}/" for path in (ROOT / "src/flops").glob("*/__init__.py")}
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert not {room for room in rooms if f"| `{room}`" not in text}


def test_variables():
    named = set(re.findall(r"FLOPS_([A-Z_]*[A-Z])\b", TEXT + (ROOT / "docs/flops.service").read_text()))
    assert len(named) > 20
    assert not {name for name in named if name.lower() not in Settings.model_fields}


def test_options():
    table = "\n".join(line for line in TEXT.splitlines() if line.startswith("|"))
    told = CliRunner().invoke(_application(["serve"]), ["serve", "--help"], env={"COLUMNS": "200"}).output
    for option in set(re.findall(r"`(--[a-z-]+)", table)):
        assert option in told, option


def test_metrics(tmp_path):
    world = World(tmp_path / "projects.sqlite3")
    text = Web(create_app(world.manager, open_access())).get("/metrics").text
    world.close()
    named = set(re.findall(r"`(flops_[a-z_]+)", TEXT))
    assert len(named) > 10
    told = {name.removesuffix("_total") for name in re.findall(r"# TYPE (\S+)", text)}
    assert {name.removesuffix("_total") for name in named} <= told
