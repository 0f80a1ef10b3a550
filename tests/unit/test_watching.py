"""What `flops project watch` says of its way to the manager, and what it leaves to the events."""

import json

import pytest
from tests import project_events as events
from tests import scripted_manager as scripted

from flops.cli import main as command_line


@pytest.fixture
def manager(monkeypatch):
    known = {"id": events.PROJECT, "state": "images_ready", "builder": "removing", "repository": "r", "warnings": []}
    manager = scripted.ScriptedManager(
        projects={events.PROJECT: {**known, "ended": None}},
        events={events.PROJECT: events.success()},
    )
    monkeypatch.setenv("FLOPS_MANAGER", manager.url)
    yield manager
    manager.stop()


def test_a_connection_that_is_lost_is_told_and_so_is_its_return(manager, capsys):
    manager.cut_after = [3, 5]
    assert command_line.main(["project", "watch", events.PROJECT]) == 0
    said = [line.partition(" to ")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == ["reconnecting", "connected again"] * 2


@pytest.mark.parametrize("words", [(), ("--watch",), ("--watch", "--json")])
def test_warnings_about_an_sla_are_told_once(manager, tmp_path, capsys, words):
    manager.projects[events.PROJECT]["warnings"] = ["/foo is unknown and ignored"]
    told = events.make("queue", "warning", "SLA: /foo is unknown and ignored")
    manager.events[events.PROJECT] = events.numbered(told, *events.success())
    sla = tmp_path / "sla.json"
    sla.write_text(json.dumps({"ml_repo_url": "https://git.example.org/acme/digits"}))
    assert command_line.main(["project", "start", str(sla), *words]) == 0
    assert "".join(capsys.readouterr()).count("/foo is unknown") == 1
