"""The example's layers hold what pip installs from the same lock (`tests/layer_contents.py`; the soak suite has the other Pythons)."""

import sys

import pytest
from tests import layer_contents as contents

pytestmark = pytest.mark.integration


HOST = contents.Platform.host()


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="pip installs for its own Python")
def test_layers_hold_what_pip_installs(tmp_path):
    reference = contents.build(tmp_path, "3.11", HOST)
    assert contents.compare(tmp_path, reference, HOST, "3.11", contents.installed_by_pip, tmp_path / "installed") > 5000
