"""`flops serve` while it starts: what it can't start with is told as a setting, and a signal ends it as later on."""

import os
import signal
import socket
import subprocess
import sys

import pytest

COMMAND = (sys.executable, "-P", "-m", "flops.cli.main", "serve")


def environment(**more):
    return {name: value for name, value in os.environ.items() if not name.startswith("FLOPS_")} | more


@pytest.mark.parametrize("option", ["--port", "--registry-port"])
def test_a_port_that_is_taken_is_told_with_its_option(option, tmp_path):
    ports = {"--port": "0", "--registry-port": "0"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports[option] = str(taken.getsockname()[1])
        words = [word for pair in ports.items() for word in pair]
        ended = subprocess.run(
            [*COMMAND, "--data", str(tmp_path), *words],
            env=environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert ports[option] in ended.stderr
    assert f"choose another {option}\n" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_starts_ends_it_as_any_other_time(number, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as oakestra:  # asked before requests are taken; it never answers
        url = f"http://127.0.0.1:{oakestra.getsockname()[1]}"
        variables = {
            "FLOPS_ORCHESTRATOR": "oakestra",
            "FLOPS_OAKESTRA_URL": url,
            "FLOPS_OAKESTRA_PASSWORD": "x",
            "FLOPS_BUILDER_IMAGE": "registry.example.org/builder:1",
            "FLOPS_REGISTRY": "http://registry.example.org",
            "FLOPS_ADVERTISE": "http://manager.example.org:5072",
            "FLOPS_DATA_DIR": str(tmp_path),
        }
        oakestra.settimeout(60)
        with subprocess.Popen(
            [*COMMAND, "--port", "0"], env=environment(**variables), stderr=subprocess.PIPE, text=True
        ) as manager:
            try:
                with oakestra.accept()[0]:
                    manager.send_signal(number)
                    told = manager.communicate(timeout=60)[1]
            finally:
                manager.kill()
    assert manager.returncode == 0, told
    assert "error" not in told
