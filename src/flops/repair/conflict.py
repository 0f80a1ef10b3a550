"""The smallest part of a list that still fails: QuickXplain (Junker, AAAI 2004) with a guess that saves most of its tests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Item = TypeVar("Item")

#: Tests at a time; each is a run of uv.
WORKERS = 2
#: Of this size and below, every member is left out in turn.
FEW = 4


def minimal(
    items: Sequence[Item], fails: Callable[[tuple[Item, ...]], bool], *, guess: Iterable[Item] = ()
) -> tuple[Item, ...]:
    """A part of the items that fails and of which no smaller part does, in their order; () where even all of them pass.

    `fails` is asked at most once for each part, from up to WORKERS threads; what fails must fail with more items too.
    `guess`: items that probably take part; a wrong guess costs one test.
    """
    search = _Search(items, fails)
    every = frozenset(range(len(items)))
    hinted = frozenset(items.index(item) for item in guess)
    if hinted and hinted < every and search.fails(hinted):
        found = search.narrow(hinted)
    elif search.fails(every):
        found = search.narrow(every)
    else:
        return ()
    return tuple(items[place] for place in sorted(found))


class _Search:
    """Parts are sets of places; answers are kept."""

    def __init__(self, items: Sequence[Item], fails: Callable[[tuple[Item, ...]], bool]) -> None:
        self._items = items
        self._ask = fails
        self._known: dict[frozenset[int], bool] = {frozenset(): False}

    def fails(self, part: frozenset[int]) -> bool:
        return self.fail([part])[0]

    def fail(self, parts: Sequence[frozenset[int]]) -> list[bool]:
        """Ask about several at once."""
        new = [part for part in dict.fromkeys(parts) if part not in self._known]
        chosen = [tuple(self._items[place] for place in sorted(part)) for part in new]
        if len(new) > 1:
            with ThreadPoolExecutor(WORKERS) as pool:
                answers = list(pool.map(self._ask, chosen))
        else:
            answers = [self._ask(part) for part in chosen]
        self._known.update(zip(new, answers, strict=True))
        return [self._known[part] for part in parts]

    def narrow(self, part: frozenset[int]) -> frozenset[int]:
        """A smallest failing part of one that fails: halves while one of them fails alone, then what lies across."""
        while len(part) > FEW:
            halves = _halves(part)
            failing = [half for half, answer in zip(halves, self.fail(halves), strict=True) if answer]
            if not failing:
                return self._across(frozenset(), part, tested=True)
            part = failing[0]
        return self._one_by_one(part)

    def _one_by_one(self, part: frozenset[int]) -> frozenset[int]:
        self.fail([part - {place} for place in sorted(part)])
        for place in sorted(part):
            if self.fails(part - {place}):
                part -= {place}
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
    places = sorted(part)
    middle = len(places) // 2
    return frozenset(places[:middle]), frozenset(places[middle:])
