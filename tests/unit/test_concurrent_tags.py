"""Two builders that name images of one commit and recipe at the same time: none takes the other's platform away.

Both publish into a real registry; their requests for the learner's two tags are let through one by one, in a chosen order.
"""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest
from tests.unit.test_publish import AMD64, ARM64, COMMIT, REPOSITORY, client, delivery, identity, server, store

from flops.actors import Actor
from flops.images.compose import index_annotations
from flops.oci.artifacts import parse_artifact
from flops.oci.client import RegistryClient
from flops.oci.image import parse_index
from flops.publishing.registry_target import RegistryTarget
from flops.recipe import Recipe
from flops.records import LOCKS, PLATFORMS, Part, Record
from flops.records.attach import Attachments

__all__ = ["client", "server", "store"]

EXACT = f"{COMMIT}-{Recipe().short}"
#: Requests for the learner's tags of one builder that is alone.
STEPS = 10


class Turns:
    """Who may make its next request, by name; after the schedule, the first one to its end, then the second."""

    def __init__(self, schedule):
        self._schedule = iter(schedule)
        self._changed = threading.Condition()
        self._left = ["a", "b"]
        self._turn = self._next()
        self._holds = None
        self.steps = []

    def _next(self):
        for name in self._schedule:
            if name in self._left:
                return name
        return self._left[0] if self._left else None

    def step(self, name, what):
        """Returns when it is this one's turn."""
        with self._changed:
            self._give_up(name)
            assert self._changed.wait_for(lambda: self._turn == name and self._holds is None, 30), self.steps
            self._holds = name
            self.steps.append((name, what))

    def end(self, name):
        with self._changed:
            self._left.remove(name)
            if self._holds != name and self._turn == name:
                self._holds = name
            self._give_up(name)

    def _give_up(self, name):
        if self._holds == name:
            self._holds = None
            self._turn = self._next()
            self._changed.notify_all()


class Stepped(httpx.BaseTransport):
    """Waits for its turn before every request that reads or moves one of the learner's tags."""

    def __init__(self, turns, name):
        self._turns, self._name = turns, name
        self._inner = httpx.HTTPTransport(verify=False)  # no certificates to be read: it speaks plain HTTP

    def handle_request(self, request):
        path = request.url.path
        if request.method in ("GET", "PUT") and path.rpartition("/")[0].endswith("learner/manifests"):
            reference = path.rpartition("/")[2]
            if reference in (COMMIT, EXACT):
                self._turns.step(self._name, f"{request.method} {'COMMIT' if reference == COMMIT else 'exact'}")
        return self._inner.handle_request(request)

    def close(self):
        self._inner.close()


def together(registry, schedule, deliveries):
    """Both publish; what each tells, and the steps in their order."""
    turns = Turns(schedule)

    def publish(name):
        try:
            with RegistryClient(registry, transport=Stepped(turns, name)) as one:
                return RegistryTarget(one).publish(deliveries[name])
        finally:
            turns.end(name)

    with ThreadPoolExecutor(2) as pool:
        futures = {name: pool.submit(publish, name) for name in deliveries}
        return {name: future.result(60) for name, future in futures.items()}, turns.steps


def tagged(client, actor, tag):
    """Digest, and manifests by platform, of what stands under a tag; all of it is there."""
    name = client.registry.repository(REPOSITORY, actor.value)
    found = client.get_manifest(name, tag)
    entries = {one.platform: one.digest for one in parse_index(found.document).manifests}
    assert all(client.get_manifest(name, digest) is not None for digest in entries.values())
    return found.digest, entries


def check_whole(client, one, other, tags=(COMMIT, EXACT)):
    """Every tag of both actors names both builders' platforms."""
    for actor in Actor:
        built = {image.platform: image.digest for images in (one, other) for image in images.images[actor]}
        for tag in tags:
            assert tagged(client, actor, tag)[1] == built, (actor, tag)
        assert len({tagged(client, actor, tag)[0] for tag in tags}) == 1


def pause(step):
    """One builder stops before that step until the other has ended."""
    return "a" * step + "b" * 100


def orders():
    """Some of the ways in which the steps of two builders may follow each other."""
    chance = random.Random(5)
    for _ in range(12):
        runs = [(name, chance.choice((1, 1, 2, 3, 5))) for _ in range(20) for name in "ab"]
        yield "".join(name * count for name, count in runs)


@contextmanager
def corner(server, number):
    """A repository prefix of its own."""
    registry = replace(server.registry, prefix=f"order{number}-{random.randrange(16**8):x}")
    with RegistryClient(registry) as one:
        yield one


@pytest.mark.parametrize("step", range(STEPS + 1))
def test_who_is_paused_anywhere_takes_no_platform_away(client, store, step):
    one, other = delivery(store, AMD64), delivery(store, ARM64)
    _, steps = together(client.registry, pause(step), {"a": one, "b": other})
    assert [name for name, _ in steps[:step]] == ["a"] * step
    check_whole(client, one, other)


def test_in_whatever_order_they_write_both_platforms_stand(server, store):
    one, other = delivery(store, AMD64), delivery(store, ARM64)
    seen = set()
    for number, order in enumerate(orders()):
        with corner(server, number) as client:
            _, steps = together(client.registry, order, {"a": one, "b": other})
            check_whole(client, one, other)
            seen.add(tuple(steps))
    assert len(seen) > 8, "these were different orders"


def test_who_builds_both_platforms_and_who_builds_one(client, store):
    one, other = delivery(store, AMD64, ARM64), delivery(store, ARM64)
    together(client.registry, pause(4), {"a": one, "b": other})
    check_whole(client, one, other)


@pytest.mark.parametrize("step", range(6))
def test_where_commit_is_anothers_only_the_instant_before_the_write_is_open(client, store, step):
    """Then the exact tag alone is moved (docs/limits.md)."""
    one, other = delivery(store, AMD64, tags=(EXACT,)), delivery(store, ARM64, tags=(EXACT,))
    _, steps = together(client.registry, pause(step), {"a": one, "b": other})
    paused = [what for name, what in steps if name == "a"][step : step + 1]
    if paused != ["PUT exact"]:
        check_whole(client, one, other, tags=(EXACT,))
    assert len(steps) <= 16


@pytest.mark.parametrize("step", [2, 4, 5, 7, 8])  # before a reading, and before a write
@pytest.mark.parametrize("source", ["https://git.example/acme/digits", "https://mirror.example/acme/digits"])
def test_two_of_the_same_platform_come_to_rest_with_the_last_one(client, store, step, source):
    """Of a mirror's images the annotations differ, too."""
    one = delivery(store, AMD64)
    theirs = replace(identity(Recipe()), source=source)
    other = delivery(
        store,
        AMD64,
        content=b", other",
        annotations=lambda actor, locks: index_annotations(theirs, actor, locks),
    )
    _, steps = together(client.registry, pause(step), {"a": one, "b": other})
    for actor in Actor:
        digests = {tagged(client, actor, tag)[0] for tag in (COMMIT, EXACT)}
        assert len(digests) == 1
        ((_, digest),) = tagged(client, actor, EXACT)[1].items()
        assert digest in {images.images[actor][0].digest for images in (one, other)}
    assert len(steps) <= 3 * STEPS, "neither puts its own back for ever"


def test_one_alone_reads_and_writes_as_often_as_it_must(client, store):
    _, steps = together(client.registry, "", {"a": delivery(store, AMD64), "b": delivery(store, AMD64)})
    alone = [what for name, what in steps if name == "a"]
    read = ["GET exact", "GET COMMIT"]
    assert alone == [*read, *read, "PUT exact", *read, "PUT COMMIT", *read]
    assert len(alone) == STEPS


def recorded(*platforms):
    """A record of what these platforms are made of."""
    parts = [
        Part(title=f"{one}.toml", data=f"# {one}".encode(), media_type="application/toml", platforms=(one,))
        for one in platforms
    ]
    record = Record(artifact_type=LOCKS, parts=tuple(parts))
    return Attachments(make=lambda _subjects: iter([record]), created="2026-01-01T00:00:00Z", refused=pytest.fail)


@pytest.mark.parametrize("step", [2, 4, 5, 7, 8])
def test_records_of_both_lie_beside_what_stands_in_the_end(client, store, step):
    one = delivery(store, AMD64, attachments=recorded(AMD64))
    other = delivery(store, ARM64, attachments=recorded(ARM64))
    together(client.registry, pause(step), {"a": one, "b": other})
    check_whole(client, one, other)
    for actor in Actor:
        digest, _ = tagged(client, actor, EXACT)
        name = client.registry.repository(REPOSITORY, actor.value)
        told = set()
        for referrer in client.referrers(name, digest, LOCKS):
            blobs = parse_artifact(client.get_manifest(name, referrer.digest).document).blobs
            told |= {blob.annotations[PLATFORMS] for blob in blobs}
        assert told == {AMD64.value, ARM64.value}
