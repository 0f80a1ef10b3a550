"""Reuse through the registry for both platforms, into the embedded registry, and the images run; see the integration test."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flops.oci.client import RegistryClient
from flops.registry.app import EmbeddedRegistry

PLATFORMS = ("--platform", "linux/amd64,linux/arm64")


def load():
    path = Path(__file__).parents[1] / "integration" / "test_reuse.py"
    specification = importlib.util.spec_from_file_location("reuse_parts", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules["reuse_parts"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def run(*words):
    done = subprocess.run(
        [str(word) for word in words],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def test_a_second_project_for_both_platforms_is_reused_pulled_and_run(tmp_path):
    parts, cache = load(), tmp_path / "cache"
    with EmbeddedRegistry(tmp_path / "registry") as server, RegistryClient(server.registry) as client:
        first, _ = parts.build(parts.write_project(tmp_path / "digits"), server, cache, *PLATFORMS)
        whole = parts.stored(server)
        shutil.rmtree(cache)
        second, told = parts.build(
            parts.write_project(tmp_path / "figures", "other code"), server, cache, *PLATFORMS, alone=True
        )
        assert "warning" not in told
        assert second["bytes"]["downloaded"] == 0
        assert second["bytes"]["uploaded"] < parts.PART * first["bytes"]["uploaded"]
        assert parts.stored(server) - whole < parts.PART * whole
        found = list(parts.differing(client, first, second))
        assert len(found) == 4
        assert all(numbers == [count - 2] for numbers, count in found)
        if shutil.which("podman") is None:
            pytest.skip("podman is not installed")
        image = second["images"]["learner"]["reference"]
        code = "import numpy, scipy, sklearn; print(sklearn.__version__)"
        limits = ["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:1000"]
        words = ["podman", "--runtime", "runc", "run", "--rm", "--tls-verify=false", "--network=host", *limits]
        try:
            # pulling checks every digest and diff id
            assert run(*words, "--entrypoint", "/opt/flops/ml/bin/python", image, "-c", code).strip() == "1.4.2"
            assert "usage" in run(*words, image, "--help").lower()
        finally:
            subprocess.run(["podman", "rmi", "--force", image], check=False, capture_output=True, timeout=60)
