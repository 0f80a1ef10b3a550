"""Readers of others' text and bytes, with some dozen damaged samples each; in full length: tests/soak/test_fuzzing.py."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz_targets import TARGETS, attempt, found_after, mutated

from flops.errors import FlopsError

#: Python's YAML is slow: the soak test looks for bugs there.
SLOW = ("conda", "python_env")


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_sample_is_read_or_refused(name, seed):
    with tempfile.TemporaryDirectory(prefix="flops-fuzz-") as room:
        attempt(TARGETS[name], mutated(TARGETS[name], seed), Path(room))


@pytest.mark.parametrize("name", TARGETS)
def test_there_are_whole_samples_and_what_is_no_error_of_ours_gets_out(name, tmp_path):
    target = TARGETS[name]
    refused = []
    for sample in target.seeds:
        try:
            target.run(sample, tmp_path)
        except FlopsError as error:
            refused.append(error)
    assert len(refused) < len(target.seeds)


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in SLOW])
def test_planted_bugs_are_found(name, tmp_path):
    assert all(found_after(TARGETS[name], plant, tmp_path, 20_000) for plant in TARGETS[name].plants)
