"""The embedded registry is killed 200 times under concurrent pushes; see `tests/registry_kills.py`."""

import pytest
from tests.registry_kills import survives

pytestmark = pytest.mark.integration


def test_what_was_acknowledged_survives_two_hundred_kills(tmp_path):
    survives(tmp_path, kills=200)
