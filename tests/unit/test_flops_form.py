"""FLOps' command line form: its words, and that every outcome is told and ends with the right code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.ports import unused_port

from flops import programs
from flops.compat import announcer as announcer_module
from flops.compat import flops_form
from flops.compat.flops_form import Form
from flops.errors import StructureError, UsageError

SOURCE = Path(__file__).parents[2] / "src"
WORDS = ["http://r:5073", "p1", "10.0.0.1", "10.0.0.2", "--supported_platforms=linux/amd64,linux/arm64"]


@pytest.fixture(autouse=True)
def _not_cancelled():
    yield
    programs._cancelled.clear()


@pytest.fixture
def observer():
    received: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, connection.makefile("rb") as stream:
                    received.append(stream.read().decode())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", received
        server.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=10)


def unused():
    return f"127.0.0.1:{unused_port()}"


@pytest.mark.parametrize(
    "words",
    [
        [*WORDS, "fl_actors", "https://github.com/a/b", "sklearn"],
        [*WORDS, "fl_actors", "https://github.com/a/b", "sklearn", "--use-devel-base-images"],
        [*WORDS[4:], *WORDS[:4], "--deactivate-notifications", "fl_actors", "https://github.com/a/b", "sklearn"],
        [*WORDS, "fl_actors", "https://github.com/a/b", "sklearn", "--deactivate-notifications"],
        [
            *WORDS[:4],
            "--supported_platforms",
            "linux/amd64,linux/arm64",
            "fl_actors",
            "https://github.com/a/b",
            "sklearn",
        ],
    ],
)
def test_flops_words_are_understood(words):
    form = Form.parse(words)
    assert (form.registry, form.project) == ("http://r:5073", "p1")
    assert (form.broker.host, form.broker.port) == ("10.0.0.1", 9027)
    assert form.observer == ("10.0.0.2", 2727)
    assert form.platforms == "linux/amd64,linux/arm64"
    assert form.words == ("https://github.com/a/b", "sklearn")
    assert form.devel_base_images == ("--use-devel-base-images" in words)
    assert form.notifications == ("--deactivate-notifications" not in words)


def test_addresses_of_oakestra_s_network_and_ports_are_understood():
    form = Form.parse(["r:1", "p1", "fdff:1000::1", "[fdff::2]:99", "fl_actors", "u", "sklearn"])
    assert (form.broker.host, form.broker.port) == ("fdff:1000::1", 9027)
    assert form.observer == ("fdff::2", 99)
    assert form.platforms == "linux/amd64"


@pytest.mark.parametrize(
    "words", [[], WORDS, WORDS[:3], [*WORDS, "other_plan"], [*WORDS, "fl_actors", "--unknown", "u", "sklearn"]]
)
def test_other_words_are_a_usage_error(words, capsys):
    with pytest.raises(UsageError):
        Form.parse(words)
    assert flops_form.main(words or ["x"]) == 2
    assert "error[USAGE]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tail", "code"),
    [
        (["fl_actors", "https://127.0.0.1/a/b", "sklearn"], "BLOCKED_ADDRESS"),
        (["fl_actors", "/etc", "sklearn"], "BAD_URL"),
        (["fl_actors", "file:///etc", "sklearn"], "BAD_URL"),
        (["fl_actors", "https://u:sesame@h/a/b", "sklearn"], "CREDENTIAL_IN_URL"),
        (["fl_actors", "https://h/a/b", "fortran"], "USAGE"),
        (["fl_actors", "https://h/a/b"], "USAGE"),
        (["trained_model", "Admin", "http://tracking", "run"], "USAGE"),
    ],
)
def test_what_can_not_be_built_is_told_and_fails(tail, code, observer, monkeypatch, tmp_path, capsys):
    """Nobody acknowledges, so the exit code is the failure's own."""
    monkeypatch.setattr(announcer_module, "OUTCOME_SECONDS", 0.2)
    monkeypatch.setenv("FLOPS_CACHE_DIR", str(tmp_path))
    where, received = observer
    assert flops_form.main(["http://r:5073", "p1", unused(), where, *tail]) in {2, 3}
    (text,) = received
    assert text.startswith(f"error[{code}]: ")
    assert "sesame" not in text + capsys.readouterr().err


def test_without_notifications_nobody_is_told(observer, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FLOPS_CACHE_DIR", str(tmp_path))
    where, received = observer
    words = ["http://r:5073", "p1", unused(), where, "fl_actors", "/etc", "sklearn", "--deactivate-notifications"]
    assert flops_form.main(words) == 3
    assert received == []
    assert "error[BAD_URL]" in capsys.readouterr().err


@pytest.mark.parametrize(("known", "code"), [(True, 0), (False, StructureError.exit_code)])
def test_a_failure_ends_with_0_once_the_manager_knows_it(known, code, monkeypatch):
    told = []
    monkeypatch.setattr(flops_form, "_build", lambda form, announcer: (_ for _ in ()).throw(StructureError("wrong")))

    def outcome(self, topic, payload):
        told.append((topic, payload))
        return known

    monkeypatch.setattr(announcer_module.Announcer, "outcome", outcome)
    assert flops_form.main([*WORDS[:2], unused(), unused(), "fl_actors", "https://h/a/b", "sklearn"]) == code
    assert told == [
        (
            "flops_manager/fl_actors_image_builder/failed",
            {"flops_project_id": "p1", "error_msg": "error[STRUCTURE]: wrong"},
        )
    ]


def test_a_build_without_end_is_ended(monkeypatch, tmp_path, observer):
    def endless(form, settings, *, say):
        programs.run(["sleep", "60"], seconds=100)

    monkeypatch.setattr("flops.compat.flops_form.build_actors", endless)
    monkeypatch.setattr(announcer_module, "OUTCOME_SECONDS", 0.2)
    monkeypatch.setenv("FLOPS_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("FLOPS_PROJECT_SECONDS", "0.3")
    where, received = observer
    assert flops_form.main([*WORDS[:2], unused(), where, "fl_actors", "https://h/a/b", "sklearn"]) == 9
    assert received[-1].startswith("error[DEADLINE_EXCEEDED]")


def test_without_words_it_is_a_job_of_our_own_manager():
    """The process becomes `flops job`, which says here that its manager is not there."""
    variables = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(SOURCE),
        "FLOPS_JOB_URL": "not a URL",
        "FLOPS_JOB_TOKEN": "t",
        "HOME": "/nonexistent",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from flops.compat.flops_form import main; main()"],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "FLOPS_JOB_URL" in done.stderr
