"""1,000 seeded fault schedules between client and registry; see `tests/fault_schedules.py`."""

import importlib.util
import sys
from pathlib import Path

SCHEDULES = 1000


def test_a_thousand_schedules(tmp_path, monkeypatch):
    path = Path(__file__).parents[1] / "fault_schedules.py"
    specification = importlib.util.spec_from_file_location("fault_schedules", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules["fault_schedules"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    happened, ends = module.run_all(tmp_path, range(1000, 1000 + SCHEDULES), monkeypatch)
    sys.stdout.write(f"{ends.total()} schedules, {happened.total()} faults: {dict(ends)}, {dict(happened)}\n")
    assert ends.total() == SCHEDULES
    assert ends["whole"] > SCHEDULES // 4
    assert ends.total() - ends["whole"] > SCHEDULES // 10
    assert min(happened.values()) > 3, happened
