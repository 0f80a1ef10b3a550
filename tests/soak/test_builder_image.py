"""The builder image from nothing, twice: the same to the byte."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

FLOPS = Path(sys.executable).with_name("flops")


def made(place, cache):
    words = [FLOPS, "images", "builder", "--output", place, "--quiet", "--json"]
    environment = {**os.environ, "FLOPS_CACHE_DIR": str(cache)}
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=900, env=environment)
    document = json.loads(done.stdout)
    if document.get("error", {}).get("code") in ("BASE_UNAVAILABLE", "INDEX_UNREACHABLE"):
        pytest.skip(document["error"]["message"])
    return document


def test_two_that_share_nothing_are_the_same(tmp_path):
    first = made(tmp_path / "one", tmp_path / "first")
    assert made(tmp_path / "two", tmp_path / "second") == first
    print({name: one["bytes"] for name, one in first["platforms"].items()})  # noqa: T201 - what `make soak` is for
