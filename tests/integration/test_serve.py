"""`flops serve` as a process: where it says that it is, its end, its lock, and what many readers cost."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from flops_wire.manager import PROJECTS

pytestmark = pytest.mark.integration

STREAMS = 300
#: Megabytes of the manager's own process.
MEMORY = 200


@contextlib.contextmanager
def serve(directory, *words, files=None, **env):
    """The process, which may open so many files, and what it printed about itself."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FLOPS_")}
    environ |= {"FLOPS_DATA_DIR": str(directory / "data"), "FLOPS_CACHE_DIR": str(directory / "cache"), **env}
    errors = directory / "stderr"
    limited = ("sh", "-c", f'ulimit -n {files} && exec "$@"', "sh") if files else ()
    with errors.open("ab") as stderr:
        child = subprocess.Popen(
            [
                *limited,
                sys.executable,
                "-m",
                "flops.cli.main",
                "serve",
                "--port",
                "0",
                "--registry-port",
                "0",
                "--json",
                *words,
            ],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environ,
            text=True,
        )
    try:
        text = ""
        while not text.endswith("\n}\n"):
            line = child.stdout.readline()
            assert line, errors.read_text()
            text += line
        yield child, json.loads(text)
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
        child.wait(40)
        child.stdout.close()


@pytest.fixture
def hanging():
    """A git server that takes connections and never answers: a project that asks it is accepted, and stays so."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}/acme/digits"


def start(url, repository, **more):
    answer = httpx.post(url + PROJECTS, json={"ml_repo_url": repository}, trust_env=False, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()["project"]["id"]


def stream(url, path):
    """A reader, on a socket of its own; nothing else of a client's memory."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    return connection


def read_until(connection, text):
    data = b""
    while text not in data:
        piece = connection.recv(65536)
        assert piece, data
        data += piece
    return data


def megabytes(pid):
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def test_many_readers_then_a_clean_end_and_a_start_that_knows_everything(tmp_path, hanging):
    with serve(tmp_path, "--log-format", "json", FLOPS_ALLOW_HOSTS="127.0.0.1") as (child, places):
        url = places["manager"]
        assert httpx.get(f"{url}/healthz", trust_env=False).json()["status"] == "ok"
        assert httpx.get(f"{places['registry']}/v2/", trust_env=False).status_code == 200
        project = start(url, hanging)
        readers = [stream(url, f"{PROJECTS}/{project}/events") for _ in range(STREAMS)]
        try:
            for reader in readers:
                assert b"the project was accepted" in read_until(reader, b"\n\n")
            assert f"flops_event_streams {STREAMS}.0" in httpx.get(f"{url}/metrics", trust_env=False).text
            assert megabytes(child.pid) < MEMORY
            threads = int(re.search(r"Threads:\s+(\d+)", Path(f"/proc/{child.pid}/status").read_text())[1])
            assert threads < 100, "a reader costs no thread"
            child.send_signal(signal.SIGTERM)
            for reader in readers:
                rest = b""
                while piece := reader.recv(65536):
                    rest += piece
                assert rest.endswith(b"0\r\n\r\n"), "an end, not a break"
        finally:
            for reader in readers:
                reader.close()
        assert child.wait(30) == 0
    lines = [json.loads(line) for line in (tmp_path / "stderr").read_text().splitlines()]
    assert [line["project"] for line in lines if line["message"] == "project accepted"] == [project]
    assert not [line for line in lines if line["level"] in ("error", "critical")], lines
    with serve(tmp_path) as (child, places):
        assert httpx.get(f"{places['manager']}{PROJECTS}/{project}", trust_env=False).json()["repository"] == hanging
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 0


def test_idle_connections_take_neither_manager_nor_registry_down(tmp_path, hanging):
    """More of them than the process may have files, from somebody who has no token."""
    secret = "t0ken-of-the-operator-0123456789"
    env = {"FLOPS_AUTH": "token", "FLOPS_API_TOKEN": secret, "FLOPS_ALLOW_HOSTS": "127.0.0.1"}
    with serve(tmp_path, files=400, **env) as (child, places), contextlib.ExitStack() as stack:
        for url in (places["manager"], places["registry"]):
            host, port = url.removeprefix("http://").split(":")
            for _ in range(450):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
        for _ in range(3):
            assert httpx.get(f"{places['manager']}/healthz", trust_env=False).json()["status"] == "ok"
            start(places["manager"], hanging, headers={"Authorization": f"Bearer {secret}"})
        assert len(list(Path(f"/proc/{child.pid}/fd").iterdir())) < 300
    (told,) = [line for line in (tmp_path / "stderr").read_text().splitlines() if "lack of room" in line][:1]
    assert "127.0.0.1" in told


def test_one_manager_for_a_directory(tmp_path):
    with serve(tmp_path) as (child, places):
        environ = {**os.environ, "FLOPS_DATA_DIR": str(tmp_path / "data")}
        words = [sys.executable, "-m", "flops.cli.main", "serve", "--port", "0", "--registry-port", "0"]
        second = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 2
        assert "another manager" in second.stderr
        assert f"process {child.pid}" in second.stderr
        assert places["manager"] in second.stderr
        port = places["manager"].rpartition(":")[2]
        other = [*words[:-4], "--port", port, "--registry-port", "0", "--data", str(tmp_path / "other")]
        taken = subprocess.run(other, capture_output=True, text=True, timeout=60, check=False)
        assert taken.returncode == 2
        assert f"can't listen on 127.0.0.1:{port}" in taken.stderr
        child.kill()
        child.wait(30)
    until = time.monotonic() + 30
    with serve(tmp_path) as (child, places):  # what was killed left no lock behind
        assert time.monotonic() < until
        assert httpx.get(f"{places['manager']}/healthz", trust_env=False).status_code == 200


def test_a_token_and_another_registry(tmp_path):
    secret = "t0ken-of-the-operator-0123456789"
    env = {"FLOPS_AUTH": "token", "FLOPS_API_TOKEN": secret}
    words = ("--host", "0.0.0.0", "--registry", "http://127.0.0.1:9", "--verbose")
    with serve(tmp_path, *words, **env) as (child, places):
        url = places["manager"]
        assert places["registry"] == "http://127.0.0.1:9"
        assert not (tmp_path / "data" / "registry").exists()
        answer = httpx.get(f"{url}/healthz", trust_env=False)
        assert (answer.status_code, answer.json()["checks"]["database"]) == (503, "ok")
        assert "REGISTRY_UNREACHABLE" in answer.json()["checks"]["registry"]
        assert httpx.get(url + PROJECTS, trust_env=False).status_code == 401
        bearer = {"Authorization": f"Bearer {secret}"}
        assert httpx.get(url + PROJECTS, headers=bearer, trust_env=False).json()["total"] == 0
        assert secret.encode() not in Path(f"/proc/{child.pid}/cmdline").read_bytes()
    assert secret not in (tmp_path / "stderr").read_text()
    assert not [
        path for path in (tmp_path / "data").rglob("*") if path.is_file() and secret.encode() in path.read_bytes()
    ]


def test_the_embedded_registry_may_want_a_token_which_builders_get(tmp_path):
    with serve(tmp_path, FLOPS_REGISTRY_TOKEN="sesame-sesame-sesame") as (_, places):
        begin = f"{places['registry']}/v2/acme/digits/learner/blobs/uploads/"
        assert httpx.post(begin, trust_env=False).status_code == 401
        assert httpx.post(begin, auth=("anybody", "wrong"), trust_env=False).status_code == 401
        assert httpx.post(begin, auth=("anybody", "sesame-sesame-sesame"), trust_env=False).status_code == 202
        assert httpx.get(f"{places['manager']}/healthz", trust_env=False).status_code == 200
