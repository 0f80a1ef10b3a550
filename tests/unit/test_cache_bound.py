"""The cache's bound: what was used last stays, what is in use is never taken, and a bound that can't be kept ends no build."""

import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flops.base import BasePackage
from flops.base.packages import PackageStore
from flops.locking.lock import LockedWheel
from flops.oci.blobs import BlobStore
from flops.oci.layer import Layer
from flops.prune.cache_bound import ABANDONED, DOCUMENTS, LEAST, LOW_WATER, MOST, CacheBound
from flops.settings import Settings
from flops.wheels.layer_cache import LayerCache
from flops.wheels.wheel_cache import WheelCache
from flops.wheels.wheel_layer import WheelLayer

BLOCK = 4096
NOW = time.time()


class Cache:
    """A cache directory with things of known size and age."""

    def __init__(self, root):
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def file(self, name, *, blocks=1, age=0.0):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(blocks * BLOCK))
        return self.aged(path, age)

    def blob(self, number, **more):
        return self.file(f"blobs/sha256/{number:064x}", **more)

    def wheel(self, number, **more):
        return self.file(f"wheels/{number:02x}/{number:064x}.whl", **more)

    def tree(self, name, *, blocks=1, age=0.0):
        for number in range(blocks):
            self.file(f"{name}/lib/{number}")
        return self.aged(self.root / name, age)

    @staticmethod
    def aged(path, age):
        os.utime(path, (NOW - age, NOW - age))
        return path

    def bound(self, blocks):
        return CacheBound(Settings(cache_dir=self.root, cache_bytes=blocks * BLOCK))

    def left(self):
        return sorted(path.name for path in self.root.rglob("*") if path.is_file() and ".bound" not in str(path))


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def test_what_was_not_used_for_longest_goes(cache):
    old = [cache.blob(1, age=500), cache.wheel(2, age=400), cache.file("bases/debs/3.deb", age=300)]
    kept = [cache.blob(number, age=200 - number) for number in range(10, 18)]
    assert cache.bound(9).keep() == 3 * BLOCK
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in kept)


def test_nothing_goes_while_there_is_room(cache):
    paths = [cache.blob(number, age=10_000 * number) for number in range(1, 9)]
    assert cache.bound(8).keep() == 0
    assert all(path.exists() for path in paths)


def test_directories_go_as_a_whole(cache):
    interpreter = cache.tree("bases/interpreters/" + "a" * 64, blocks=4, age=900)
    python = cache.tree("pythons/" + "b" * 64, blocks=4, age=800)
    offers = cache.file("pythons/offers/x.json", age=900)
    newer = cache.tree("bases/interpreters/" + "c" * 64, blocks=4, age=100)
    assert cache.bound(5).keep() == 8 * BLOCK
    assert not interpreter.exists()
    assert not python.exists()
    assert len(list(newer.rglob("*"))) == 5
    assert offers.exists()


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    things=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 1000)), min_size=1, max_size=12),
    limit=st.integers(0, 40),
)
def test_the_bound_holds_and_the_youngest_stay(tmp_path_factory, things, limit):
    cache = Cache(tmp_path_factory.mktemp("cache"))
    paths = {cache.blob(number, blocks=blocks, age=age): (blocks, age) for number, (blocks, age) in enumerate(things)}
    before = sum(blocks for blocks, _ in paths.values())
    removed = cache.bound(limit).keep() // BLOCK
    left = {path: value for path, value in paths.items() if path.exists()}
    gone = {path: value for path, value in paths.items() if path not in left}
    assert sum(blocks for blocks, _ in left.values()) == before - removed <= limit or before <= limit
    if gone and left:
        assert min(age for _, age in gone.values()) >= max(age for _, age in left.values())
    if gone:  # not one more than had to
        youngest = min(gone, key=lambda path: (paths[path][1], path))
        assert before - removed + max(blocks for blocks, _ in [paths[youngest]]) > int(limit * LOW_WATER) - 5


# --- what is in use ---------------------------------------------------------------------------------------------------
def test_what_a_running_build_may_have_used_stays(cache):
    cache.blob(1, age=1000)
    used = cache.blob(2, age=1000)
    with cache.bound(0).held():
        assert BlobStore(cache.root).use(f"sha256:{2:064x}", BLOCK)
        made = cache.blob(3)
        os.utime(made)
        assert cache.bound(0).keep() == BLOCK
        assert cache.left() == [used.name, made.name, *(path.name for path in cache.root.glob(".running/*"))]
    assert cache.left() == [], "it has ended, and more lies here than may"


def test_uses_are_seen(cache):
    """Each way by which a build takes something from the cache marks it, and none takes half of a thing."""
    blobs = BlobStore(cache.root)
    blob = cache.blob(1, age=5000)
    layer = WheelLayer(
        digest=f"sha256:{1:064x}", diff_id="sha256:" + "0" * 64, size=BLOCK, uncompressed_size=1, media_type="x"
    )
    layers = LayerCache(cache.root / "layers", blobs)
    layers.put("k" * 64, layer)
    packages = PackageStore(cache.root / "bases")
    base_layers = LayerCache(cache.root / "bases" / "layers", blobs)
    base_layers.keep("b" * 64, Layer(**{name: getattr(layer, name) for name in Layer.__dataclass_fields__}))
    wheel = cache.wheel(0, age=5000)
    deb = cache.file(f"bases/debs/{'d' * 64}.deb", age=5000)
    locked = LockedWheel(name="a", version="1", filename="a-1-py3-none-any.whl", url="", sha256=f"{0:064x}", size=BLOCK)
    package = BasePackage(name="a", version="1", architecture="all", size=BLOCK, sha256="d" * 64)
    for path, use in (
        (blob, lambda: layers.local("k" * 64) == layer),
        (cache.root / "layers" / f"{'k' * 64}.json", lambda: layers.local("k" * 64) == layer),
        (blob, lambda: base_layers.find("b" * 64).digest == layer.digest),
        (cache.root / "bases" / "layers" / f"{'b' * 64}.json", lambda: base_layers.find("b" * 64) is not None),
        (wheel, lambda: WheelCache(cache.root / "wheels").has(locked)),
        (deb, lambda: packages.missing([package]) == []),
    ):
        cache.aged(path, 5000)
        assert use()
        assert time.time() - path.stat().st_mtime < 60, path
    cache.aged(blob, 5000)
    assert not blobs.use(layer.digest, BLOCK + 1)
    assert not blobs.use("sha256:" + "7" * 64, 1)
    assert time.time() - blob.stat().st_mtime > 60, "what is not whole is not used"


def test_a_build_of_another_process_is_respected_and_a_killed_one_is_not(cache):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom flops.prune.cache_bound import CacheBound\n"
        "from flops.settings import Settings\n"
        f"with CacheBound(Settings(cache_dir=Path({str(cache.root)!r}), cache_bytes=0)).held():\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout.readline() == b"held\n"
            used = cache.blob(1)
            os.utime(used)
            cache.blob(2, age=1000)
            assert cache.bound(0).keep() == BLOCK
            assert used.exists()
        finally:
            child.kill()
    assert len(list(cache.root.glob(".running/*"))) == 1
    (cache.root / ".bound").unlink()
    assert cache.bound(0).keep() == BLOCK
    assert not used.exists()
    assert list(cache.root.glob(".running/*")) == []


def test_what_is_used_just_when_it_is_taken_is_put_back(cache, monkeypatch):
    """Between the look and the removal another build may have begun to use it."""
    blob = cache.blob(1, age=1000)
    look = CacheBound._found

    def used_meanwhile(self, *words, **more):
        found = list(look(self, *words, **more))
        os.utime(blob)
        return iter(found)

    monkeypatch.setattr(CacheBound, "_found", used_meanwhile)
    assert cache.bound(0).keep() == 0
    assert blob.exists()


def test_whoever_uses_and_whoever_removes_come_one_after_the_other(cache):
    """Many at once: what a build was told to be there can be read, however hard others remove."""
    store, done = BlobStore(cache.root), threading.Event()
    digests = [store.put(bytes([number]) * BLOCK) for number in range(8)]
    told = {"there": 0, "gone": 0}

    def build(seed):
        numbers = random.Random(seed)
        for _ in range(60):
            with cache.bound(0).held():
                digest = numbers.choice(digests)
                if store.use(digest, BLOCK):
                    told["there"] += 1
                    assert len(store.read(digest)) == BLOCK
                else:
                    told["gone"] += 1
                    store.put(bytes([digests.index(digest)]) * BLOCK)

    def remove():
        while not done.is_set():
            (cache.root / ".bound").write_text("")  # so that it is due each time
            cache.bound(0).keep()

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(build, range(4)))
    finally:
        done.set()
        remover.join()
    assert told["there"] > 10
    assert told["gone"] > 10


def test_a_build_that_begins_waits_for_the_end_of_a_removal(cache):
    bound, began = cache.bound(10), threading.Event()
    bound.keep()

    def build():
        with bound.held():
            began.set()

    with (cache.root / ".bound").open("r+b") as state:
        fcntl.flock(state, fcntl.LOCK_EX)
        thread = threading.Thread(target=build)
        thread.start()
        assert not began.wait(0.2)
        fcntl.flock(state, fcntl.LOCK_UN)
    thread.join(30)
    assert began.is_set()


def test_only_one_removes_at_a_time(cache):
    cache.blob(1, age=1000)
    cache.bound(10).keep()
    with (cache.root / ".bound").open("r+b") as state:
        fcntl.flock(state, fcntl.LOCK_EX)
        assert cache.bound(0).keep() == 0
    assert cache.bound(0).keep() == BLOCK


def test_blobs_that_a_layout_has_too_are_left(cache, tmp_path):
    """Removing one of two names gains nothing."""
    shared, alone = cache.blob(1, age=1000), cache.blob(2, age=500)
    os.link(shared, tmp_path / "in-a-layout")
    assert cache.bound(0).keep() == BLOCK
    assert shared.exists()
    assert not alone.exists()


# --- how often --------------------------------------------------------------------------------------------------------
class Wrote:
    def __init__(self, written):
        self.written = written


def scans(cache, monkeypatch):
    seen = []
    evict = CacheBound._evict

    def record(self, limit):
        seen.append(limit)
        return evict(self, limit)

    monkeypatch.setattr(CacheBound, "_evict", record)
    return seen


def test_sizes_are_added_up_only_when_they_may_have_passed_the_bound(cache, monkeypatch):
    seen = scans(cache, monkeypatch)
    for _ in range(3):
        with cache.bound(100).held():
            pass
    assert len(seen) == 1, "the first time"
    for written in (30, 30, 30):
        bound = cache.bound(100)
        bound.watch(Wrote(written * BLOCK), Wrote(0))
        with bound.held():
            pass
    assert len(seen) == 1
    bound = cache.bound(100)
    bound.watch(Wrote(10 * BLOCK), Wrote(BLOCK))
    with bound.held():
        pass
    assert len(seen) == 2


def test_sizes_are_added_up_once_a_day(cache, monkeypatch):
    seen = scans(cache, monkeypatch)
    cache.bound(100).keep()
    state = json.loads((cache.root / ".bound").read_text())
    for ago, times in ((3600, 1), (25 * 3600, 2), (-3600, 3)):  # the last: a clock that was ahead
        (cache.root / ".bound").write_text(json.dumps({**state, "scanned": time.time() - ago}))
        cache.bound(100).keep()
        assert len(seen) == times


@pytest.mark.parametrize("text", ["", "{", "[]", '{"bytes": "x"}', "null", "9" * 5000])
def test_a_damaged_note_of_sizes_is_made_anew(cache, text):
    (cache.root / ".bound").write_text(text)
    cache.blob(1, age=10)
    assert cache.bound(0).keep() == BLOCK
    assert json.loads((cache.root / ".bound").read_text())["bytes"] == 0


def test_old_documents_go_whatever_room_there_is(cache):
    old = [
        cache.file(name, age=DOCUMENTS + 1000)
        for name in ("locks/a.json", "layers/b.json", "provides/c.json", "bases/sets/d.json")
    ]
    young = [cache.file(name, age=DOCUMENTS - 1000) for name in ("locks/e.json", "layers/f.json")]
    cache.bound(1000).keep()
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in young)


def test_what_killed_builders_were_writing_goes_whatever_room_there_is(cache):
    names = ("bases/apt-x/lists/a", "bases/sources-x/b", "bases/interpreters/.partial-x/c", "pythons/.new-x/d")
    old = [
        cache.file(name, age=0)
        for name in (*names, "bases/sets/.new-e", "provides/.new-f", "locks/.new-g", "wheels/ab/.new-h")
    ]
    young = [cache.file(name.replace("-x", "-y"), age=0) for name in names]
    for path in old:
        whole = path.parent if path.name in "cbd" else path.parent.parent if path.name == "a" else path
        os.utime(whole, (time.time() - ABANDONED - 1000,) * 2)
    cache.bound(1000).keep()
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in young)


def test_uvs_cache_counts_and_is_emptied_by_uv_where_it_is_large(cache):
    cache.file("uv/simple/a", blocks=30)
    (cache.root / "uv" / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55")
    kept = cache.blob(1, age=10)
    cache.bound(200).keep()
    assert (cache.root / "uv/simple/a").exists()
    (cache.root / ".bound").unlink()
    cache.bound(100).keep()
    assert not (cache.root / "uv/simple/a").exists()
    assert kept.exists()


# --- when it can't be kept --------------------------------------------------------------------------------------------
def test_a_build_goes_on_where_nothing_can_be_locked_or_removed(cache, monkeypatch):
    def refuse(*_):
        raise OSError(38, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with cache.bound(0).held():
        blob = cache.blob(1, age=10)
    assert blob.exists()


def test_a_failed_build_is_followed_by_the_bound_too(cache):
    blob = cache.blob(1, age=1000)
    with pytest.raises(ValueError, match="of the build"), cache.bound(0).held():
        raise ValueError("of the build")
    assert not blob.exists()


def test_a_cache_that_is_gone_is_no_error(cache):
    with cache.bound(0).held():
        shutil.rmtree(cache.root)


def test_what_is_kept_where_nothing_is_set(tmp_path, monkeypatch):
    for total, limit in ((10**9, LEAST), (10**11, 10**10), (10**13, MOST)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, total=total: shutil._ntuple_diskusage(total, 0, 0))
        assert CacheBound(Settings(cache_dir=tmp_path)).limit == limit
    monkeypatch.setenv("FLOPS_CACHE_BYTES", "5GB")
    assert CacheBound(Settings(cache_dir=tmp_path)).limit == 5 * 10**9
