"""FLOps' command line form against its own parts: Mosquitto, an observer, a registry; exact topics, payloads and texts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from flops.oci.client import RegistryClient
from flops.platforms import Platform
from flops.registry.app import EmbeddedRegistry

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "digits-sklearn"
BUILDER = "flops_manager/fl_actors_image_builder"
DURATION = re.compile(r"(?:'\d+' minutes and )?\d+ seconds")
PARTS = [
    "build_preparation",
    "base_image_build",
    "base_image_push",
    "actor_images_build",
    "actor_images_push",
    "full_builder_process",
]
#: What says that the machine lacks something.
NOT_HERE = ("error[BASE_UNAVAILABLE]", "error[INDEX_UNREACHABLE]")


@pytest.fixture
def registry(tmp_path):
    with EmbeddedRegistry(tmp_path / "registry") as running:
        yield running.registry


@contextmanager
def form(registry, components, *tail, platforms="linux/amd64", local=True, **variables):
    """The builder as FLOps' manager starts it; the repository of a test is a directory, which must be allowed."""
    words = [f"http://{registry.host}", "p1", components.broker, components.observer]
    words += [f"--supported_platforms={platforms}", *map(str, tail)]
    settings = {"FLOPS_ALLOW_LOCAL": "1" if local else "0", "PYTHONPATH": str(ROOT / "src"), **variables}
    program = "import sys; from flops.compat.flops_form import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", program, *words],
        env={**os.environ, **settings},
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def run(*arguments, **options):
    with form(*arguments, **options) as child:
        _, said = child.communicate(timeout=600)
    if any(reason in said for reason in NOT_HERE):
        pytest.skip(said.strip().splitlines()[-1])
    return child.returncode, said


def test_a_build_is_told_in_flops_words_and_images_that_stand_are_found(registry, components):
    code, said = run(registry, components, "fl_actors", EXAMPLE, "sklearn", "--use-devel-base-images")
    assert code == 0, said
    components.wait_for(messages=2, texts=7)
    (started, nothing), (succeeded, payload) = components.messages
    assert (started, nothing) == (f"{BUILDER}/started", {"flops_project_id": "p1"})
    assert succeeded == f"{BUILDER}/success"
    assert payload.pop("flops_project_id") == "p1"
    assert list(payload) == PARTS
    assert all(DURATION.fullmatch(text) for text in payload.values())
    assert "--use-devel-base-images is ignored" in said

    learner, aggregator = "local/digits-sklearn/learner", "local/digits-sklearn/aggregator"
    assert httpx.get(f"{registry.url}/v2/_catalog").json() == {"repositories": [aggregator, learner]}
    with RegistryClient(registry) as client:
        commit = min(client.tags(learner), key=len)
        assert sorted(map(len, client.tags(learner))) == [len(commit), len(commit) + 13]
        assert client.images(aggregator, commit).keys() == {Platform.LINUX_AMD64}
    names = [f"{registry.host}/{name}" for name in (learner, aggregator)]
    assert [text for text in components.texts if not text.startswith("Adjusted ")] == [
        *(f"Start building {name} image (This can take a while)" for name in names),
        *(f"Successfully finished building new '{name}:{commit}' image" for name in names),
        *(f"Successfully pushed new '{name}:{commit}' image" for name in names),
        ", ".join(f"{part}: {text}" for part, text in payload.items()),
    ]

    components.messages.clear()
    components.texts.clear()
    code, said = run(registry, components, "fl_actors", EXAMPLE, "sklearn")
    assert code == 0, said
    components.wait_for(messages=2, texts=2)
    assert [topic for topic, _ in components.messages] == [f"{BUILDER}/started", f"{BUILDER}/success"]
    kept = [text for text in components.texts if not text.startswith("Adjusted ")]
    assert kept[0] == "Latest FLOps images already exists for the provided repo."
    assert len(kept) == 2


def test_a_failure_is_told_whole_and_the_service_is_not_started_again(registry, components, tmp_path):
    repository = tmp_path / "broken"
    repository.mkdir()
    (repository / "model_manager.py").write_text("class ModelManager:\n    def get_model(self): ...\n")
    (repository / "requirements.txt").write_text("".join(f"-e ./part{number}\n" for number in range(10)))
    code, said = run(registry, components, "fl_actors", repository, "sklearn")
    assert code == 0, said
    components.wait_for(messages=2, texts=1)
    (started, _), (failed, payload) = components.messages
    assert (started, failed) == (f"{BUILDER}/started", f"{BUILDER}/failed")
    assert payload == {"flops_project_id": "p1", "error_msg": components.texts[0]}
    assert payload["error_msg"].startswith("error[STRUCTURE]: ")
    assert len(payload["error_msg"]) > 1024  # what the original's observer would have cut
    for missing in ("fit_model", "evaluate_model", "set_model_parameters", "data_manager.py"):
        assert missing in payload["error_msg"]


def test_a_directory_is_refused_unless_it_is_allowed(registry, components):
    code, _ = run(registry, components, "fl_actors", EXAMPLE, "sklearn", local=False)
    assert code == 0
    components.wait_for(messages=2, texts=1)
    assert components.messages[1][1]["error_msg"].startswith("error[BAD_URL]: ")


def test_what_ours_does_not_build_is_told_on_its_own_topic(registry, components):
    code, _ = run(registry, components, "trained_model", "Admin", "http://tracking", "run1")
    assert code == 0
    components.wait_for(messages=1, texts=1)
    assert components.messages[0][0] == "flops_manager/trained_model_image_builder/failed"
    assert components.messages[0][1]["flops_project_id"] == "p1"


def test_a_builder_that_is_stopped_says_nothing_more(registry, components, tmp_path):
    """Its git waits for a host that does not answer; SIGTERM ends all of it at once."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/a/b"
        with form(registry, components, "fl_actors", url, "sklearn", FLOPS_ALLOW_HOSTS="127.0.0.1") as child:
            silent.settimeout(60)
            connection, _ = silent.accept()
            with connection:
                child.send_signal(signal.SIGTERM)
                begun = time.monotonic()
                assert child.wait(timeout=60) == 130
                assert time.monotonic() - begun < 30
                connection.settimeout(30)
                while connection.recv(65536):  # git is gone too: the connection ends
                    pass
    components.wait_for(messages=1)
    assert [topic for topic, _ in components.messages] == [f"{BUILDER}/started"]
    assert components.texts == []
