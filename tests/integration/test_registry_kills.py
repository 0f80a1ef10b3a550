"""The embedded registry is killed 10 times under concurrent pushes; see `tests/registry_kills.py`."""

import pytest
from tests.registry_kills import survives

pytestmark = pytest.mark.integration


def test_what_was_acknowledged_survives_ten_kills(tmp_path):
    survives(tmp_path, kills=10)
