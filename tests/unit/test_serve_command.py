"""`flops serve`: what it can't start with is told as a setting, before anything runs."""

import os
import socket
import subprocess
import sys

import pytest


@pytest.mark.parametrize("option", ["--port", "--registry-port"])
def test_a_port_that_is_taken_is_told_with_its_option(option, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLOPS_")}
    ports = {"--port": "0", "--registry-port": "0"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports[option] = str(taken.getsockname()[1])
        words = [word for pair in ports.items() for word in pair]
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "flops.cli.main", "serve", "--data", str(tmp_path), *words],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert ports[option] in ended.stderr
    assert f"choose another {option}\n" in ended.stderr
