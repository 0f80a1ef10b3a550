"""The smallest part of a list that still fails: QuickXplain (Junker, AAAI 2004), with a guess that saves most of its tests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Item = TypeVar("Item")

#: Tests at a time; each is a run of uv.
WORKERS = 2
#: Of this many items and fewer, each is left out in turn.
FEW = 4


def minimal(
    items: Sequence[Item], fails: Callable[[tuple[Item, ...]], bool], *, guess: Iterable[Item] = ()
) -> tuple[Item, ...]:
    """A part of the items, in their order, that fails and of which no smaller part fails; () where all of them pass.

    `fails` is called at most once for each part, from up to WORKERS threads; what fails must fail with more items too.
    `guess`: items that probably belong to the part; a wrong guess costs one test.
    """
    search = _Search(items, fails)
    every = frozenset(range(len(items)))
    guessed = frozenset(items.index(item) for item in guess)
    if guessed and guessed < every and search.fails(guessed):
        found = search.narrow(guessed)
    elif search.fails(every):
        found = search.narrow(every)
    else:
        return ()
    return tuple(items[index] for index in sorted(found))


class _Search:
    """Tests parts, which are sets of indexes, and remembers the results."""

    def __init__(self, items: Sequence[Item], fails: Callable[[tuple[Item, ...]], bool]) -> None:
        self._items = items
        self._test = fails
        self._known: dict[frozenset[int], bool] = {frozenset(): False}

    def fails(self, part: frozenset[int]) -> bool:
        return self.fail([part])[0]

    def fail(self, parts: Sequence[frozenset[int]]) -> list[bool]:
        """Test several parts at once."""
        new = [part for part in dict.fromkeys(parts) if part not in self._known]
        chosen = [tuple(self._items[index] for index in sorted(part)) for part in new]
        with ThreadPoolExecutor(WORKERS) as pool:
            self._known.update(zip(new, pool.map(self._test, chosen), strict=True))
        return [self._known[part] for part in parts]

    def narrow(self, part: frozenset[int]) -> frozenset[int]:
        """The smallest failing part of a failing one: take halves while one of them fails alone, then search across."""
        while len(part) > FEW:
            halves = _halves(part)
            failing = [half for half, failed in zip(halves, self.fail(halves), strict=True) if failed]
            if not failing:
                return self._across(frozenset(), part, tested=True)
            part = failing[0]
        self.fail([part - {index} for index in sorted(part)])
        for index in sorted(part):
            if self.fails(part - {index}):
                part -= {index}
        return part

    def _across(self, background: frozenset[int], part: frozenset[int], *, tested: bool) -> frozenset[int]:
        """QuickXplain: what of `part` is needed to fail together with `background`; `tested`: the background passes."""
        if not tested and self.fails(background):
            return frozenset()
        if len(part) == 1:
            return part
        one, other = _halves(part)
        of_other = self._across(background | one, other, tested=False)
        of_one = self._across(background | of_other, one, tested=not of_other)
        return of_one | of_other


def _halves(part: frozenset[int]) -> tuple[frozenset[int], frozenset[int]]:
    indexes = sorted(part)
    middle = len(indexes) // 2
    return frozenset(indexes[:middle]), frozenset(indexes[middle:])
