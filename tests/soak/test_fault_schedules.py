"""1,000 seeded fault schedules between client and registry; see `tests/fault_schedules.py`."""

import sys

from tests import fault_schedules

SCHEDULES = 1000


def test_a_thousand_schedules(tmp_path, monkeypatch):
    happened, ends = fault_schedules.run_all(tmp_path, range(1000, 1000 + SCHEDULES), monkeypatch)
    sys.stdout.write(f"{ends.total()} schedules, {happened.total()} faults: {dict(ends)}, {dict(happened)}\n")
    assert ends.total() == SCHEDULES
    assert ends["whole"] > SCHEDULES // 4
    assert ends.total() - ends["whole"] > SCHEDULES // 10
    assert min(happened.values()) > 3, happened
