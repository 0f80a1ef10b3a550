"""100 seeded fault schedules between client and registry; the soak suite runs 1,000 (`tests/fault_schedules.py`)."""

import sys

import pytest
from tests import fault_schedules

pytestmark = pytest.mark.integration

SCHEDULES = 100


def test_every_schedule_ends_in_a_whole_image_or_a_clean_error_and_a_rerun_succeeds(tmp_path, monkeypatch):
    happened, ends = fault_schedules.run_all(tmp_path, range(SCHEDULES), monkeypatch)
    sys.stdout.write(f"{ends.total()} schedules, {happened.total()} faults: {dict(ends)}, {dict(happened)}\n")
    assert ends.total() == SCHEDULES
    assert ends["whole"] > SCHEDULES // 4
    assert ends.total() - ends["whole"] > SCHEDULES // 10
    assert min(happened[kind] for kind in ("drop", "5xx", "429", "slow", "cut", "wrong Location", "413")) > 10, happened
    rare = ("refused mount", "expired token", "MANIFEST_BLOB_UNKNOWN", "lost blob", "digest lie", "changed bytes")
    assert min(happened[kind] for kind in rare) > 0, happened
