"""The embedded registry is killed 10 times under concurrent pushes; see `tests/registry_kills.py`."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
KILLS = 10


def test_what_was_acknowledged_survives_ten_kills(tmp_path):
    path = Path(__file__).parents[1] / "registry_kills.py"
    specification = importlib.util.spec_from_file_location("registry_kills", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules["registry_kills"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    blobs, manifests = module.run(tmp_path, KILLS)
    sys.stdout.write(f"{KILLS} kills, {blobs} blobs and {manifests} manifests acknowledged\n")
    assert blobs > KILLS
    assert manifests > KILLS // 4
