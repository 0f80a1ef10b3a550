"""The smallest part that fails, on made-up failures."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flops.repair.conflict import WORKERS, minimal


class Oracle:
    """Fails where one of the cores is contained; counts what it is asked."""

    def __init__(self, *cores):
        self.cores = [frozenset(core) for core in cores]
        self.asked = []
        self.running = 0
        self.most = 0
        self.lock = threading.Lock()

    def __call__(self, part):
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.asked.append(part)
        try:
            return any(core <= frozenset(part) for core in self.cores)
        finally:
            with self.lock:
                self.running -= 1


def test_two_of_thirty_in_few_tests():
    oracle = Oracle({4, 27})
    assert minimal(range(30), oracle) == (4, 27)
    assert len(oracle.asked) <= 20
    assert oracle.most <= WORKERS


def test_a_good_guess_saves_most_tests():
    oracle = Oracle({4, 27})
    assert minimal(list(range(30)), oracle, guess=[27, 3, 4]) == (4, 27)
    assert len(oracle.asked) <= 7


@pytest.mark.parametrize("guess", [[1, 2, 3], list(range(30)), [4]])
def test_a_wrong_guess_changes_nothing(guess):
    assert minimal(list(range(30)), Oracle({4, 27}), guess=guess) == (4, 27)


def test_what_passes_has_no_core():
    assert minimal(list(range(5)), Oracle({9})) == ()
    assert minimal([], Oracle({9})) == ()


@given(
    size=st.integers(1, 24),
    data=st.data(),
)
def test_the_part_fails_and_no_smaller_part_does(size, data):
    place = st.integers(0, size - 1)
    cores = data.draw(st.lists(st.sets(place, min_size=1, max_size=4), min_size=1, max_size=3))
    guess = data.draw(st.lists(place, max_size=5, unique=True))
    oracle = Oracle(*cores)
    items = list(range(size))
    found = minimal(items, oracle, guess=guess)
    assert frozenset(found) in oracle.cores
    assert list(found) == sorted(found)
    check = Oracle(*cores)
    assert check(found)
    assert not any(check(tuple(other for other in found if other != one)) for one in found)
    assert len(oracle.asked) == len(set(oracle.asked))
