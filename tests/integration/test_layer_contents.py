"""The example's layers hold what pip installs from the same lock (`tests/layer_contents.py`; the soak suite has the other Pythons)."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration


def load():
    path = Path(__file__).parents[1] / "layer_contents.py"
    specification = importlib.util.spec_from_file_location("layer_contents", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


contents = load()
HOST = contents.Platform.host()


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="pip installs for its own Python")
def test_layers_hold_what_pip_installs(tmp_path):
    reference = contents.build(tmp_path, "3.11", HOST)
    assert contents.compare(tmp_path, reference, HOST, "3.11", contents.installed_by_pip, tmp_path / "installed") > 5000
