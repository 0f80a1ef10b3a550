"""Assembly: every layer once, whatever asks for it, from wheels that are fetched once; failures end it."""

import base64
import hashlib
import io
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import httpx
import pytest

from flops.base.bytecode import Interpreter
from flops.errors import BaseUnavailable, IndexUnreachable, RegistryUnreachable, WheelHash, WheelRecord
from flops.images import assemble
from flops.images.assemble import Assembly, LayerTools
from flops.images.plan import BytecodeLayer, FilesLayer, WheelsLayer
from flops.locking.lock import LockedWheel
from flops.oci.blobs import BlobStore
from flops.oci.entries import Directory, File, Link
from flops.progress import Silent, Stage
from flops.recipe import Compression
from flops.wheels.layer_cache import LayerCache
from flops.wheels.wheel_cache import WheelCache

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
FULL = ".".join(map(str, sys.version_info[:3]))
SITE = f"opt/flops/runtime/lib/python{MINOR}/site-packages"


class Ours(Interpreter):
    """The Python of these tests in the place of a base's."""

    def command(self, arguments):
        return [sys.executable, *map(str, arguments)]

    @property
    def home(self):
        return Path(sys.base_prefix)


OURS = Ours(root=Path("/"), minor=MINOR, program="usr/bin/python", loader="", libraries=())


class Index:
    """Serves wheels over a transport without a network, and counts."""

    def __init__(self):
        self.files = {}
        self.asked = []
        self.held = threading.Event()
        self.held.set()

    def wheel(self, name, files=None, *, broken=False):
        """A wheel of these files; `broken`: its RECORD has a false hash."""
        info = f"{name}-1.0.dist-info"
        content = {f"{name}/__init__.py": f"NAME = {name!r}\n".encode(), **(files or {})}
        content |= {f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
        content |= {f"{info}/METADATA": f"Name: {name}\nVersion: 1.0\n".encode()}
        rows = [f"{path},sha256={self.digest(data + b'!' * broken)},{len(data)}" for path, data in content.items()]
        output = io.BytesIO()
        with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, data in {**content, f"{info}/RECORD": "\n".join([*rows, f"{info}/RECORD,,"]).encode()}.items():
                archive.writestr(zipfile.ZipInfo(path, (2024, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
        data = output.getvalue()
        filename = f"{name}-1.0-py3-none-any.whl"
        self.files[filename] = data
        return LockedWheel(
            name=name,
            version="1.0",
            filename=filename,
            url=f"https://index.example/{filename}",
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
        )

    @staticmethod
    def digest(data):
        return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")

    def __call__(self, request):
        self.held.wait(60)
        name = request.url.path[1:]
        self.asked.append(name)
        found = self.files.get(name)
        return httpx.Response(404) if found is None else httpx.Response(200, stream=httpx.ByteStream(found))


@pytest.fixture
def index():
    return Index()


class Counting(Silent):
    def __init__(self):
        self.seen = []

    def progress(self, stage, *, done, total=None, platform=None):
        self.seen.append((stage, done, total))


@pytest.fixture
def workshop(tmp_path, index):
    """Makes workshops over one cache; what was offered is in `.offered`."""
    blobs = BlobStore(tmp_path)
    wheels = WheelCache(tmp_path / "wheels", transport=httpx.MockTransport(index), sleep=lambda _seconds: None)

    def make(**changes):
        offered = []
        values = {
            "wheels": wheels,
            "layers": LayerCache(tmp_path / "layers", blobs),
            "blobs": blobs,
            "compression": Compression.GZIP,
            "interpreter": lambda _version: OURS,
            "offer": offered.append,
            "reporter": Counting(),
            "workers": 2,
        }
        one = LayerTools(**(values | changes))
        object.__setattr__(one, "offered", offered)
        return one

    with wheels:
        yield make


def wheels_layer(*wheels, prefix="opt/flops/runtime"):
    return WheelsLayer(title="wheels", prefix=prefix, python=MINOR, wheels=wheels)


def bytecode(*wheels, full=FULL):
    return BytecodeLayer(title="bytecode", prefix="opt/flops/runtime", python=MINOR, python_full=full, wheels=wheels)


def run(workshop, *batches):
    with Assembly(workshop) as assembly:
        for batch in batches:
            assembly.add(batch)
        assembly.wait_for_wheels()
        made = assembly.finish([layer for batch in batches for layer in batch])
        assembly.wait_for_offers()
    return made, assembly


def members(workshop, layer):
    with tarfile.open(workshop.blobs.path(layer.digest)) as archive:
        return {member.name: member for member in archive}


def test_layers_of_each_kind(workshop, index, tmp_path):
    one, other = index.wheel("one"), index.wheel("other")
    (tmp_path / "model.py").write_text("MODEL = 1\n")
    files = FilesLayer(
        title="files",
        entries=(
            File(path="opt/repo/model.py", data=tmp_path / "model.py", executable=True, owner=7),
            Link(path="opt/repo/latest", target="model.py"),
            Directory(path="opt/repo", owner=7, mode=0o750),
            File(path="opt/main.py", data=b"pass\n"),
        ),
    )
    shop = workshop()
    made, _ = run(shop, [wheels_layer(one, other), bytecode(one, other), files])
    assert set(members(shop, made[wheels_layer(one, other)])) >= {
        f"{SITE}/one/__init__.py",
        f"{SITE}/other/__init__.py",
    }
    tag = MINOR.replace(".", "")
    assert f"{SITE}/one/__pycache__/__init__.cpython-{tag}.pyc" in members(shop, made[bytecode(one, other)])
    found = members(shop, made[files])
    assert list(found) == ["opt", "opt/main.py", "opt/repo", "opt/repo/latest", "opt/repo/model.py"]
    assert (found["opt/repo"].mode, found["opt/repo"].uid, found["opt/repo"].gid) == (0o750, 7, 7)
    assert (found["opt/repo/model.py"].mode, found["opt/repo/model.py"].size) == (0o755, 10)
    assert found["opt/repo/latest"].linkname == "model.py"
    assert made[files].comment == "files"
    assert sorted(layer.digest for layer in shop.offered) == sorted(layer.digest for layer in made.values())


def test_what_is_asked_for_twice_is_made_and_fetched_once(workshop, index, monkeypatch):
    shared, own = index.wheel("shared"), index.wheel("own")
    made = []
    monkeypatch.setattr(assemble, "write_entries", lambda entries, writer: made.append(entries))
    files = FilesLayer(title="files", entries=())
    first, second = wheels_layer(shared, own), wheels_layer(shared, prefix="opt/flops/ml")
    shop = workshop()
    layers, assembly = run(shop, [first, first, files], [first, second, files])
    assert sorted(index.asked) == ["own-1.0-py3-none-any.whl", "shared-1.0-py3-none-any.whl"]
    assert len(made) == 1
    assert len(shop.offered) == len(layers) == 3
    assert assembly.downloaded == shared.size + own.size


def test_what_is_remembered_is_neither_fetched_nor_made(workshop, index, tmp_path):
    one = index.wheel("one")
    layers = [wheels_layer(one), bytecode(one)]
    first, _ = run(workshop(), layers)
    index.asked.clear()
    for path in (tmp_path / "wheels").rglob("*.whl"):
        path.unlink()
    shop = workshop(interpreter=lambda _version: pytest.fail("nothing is to be compiled"))
    again, assembly = run(shop, layers)
    assert again == first
    assert index.asked == []
    assert assembly.downloaded == 0
    assert assembly.reused == sum(layer.size for layer in first.values())
    assert len(shop.offered) == 2, "it may be missing where the images go"


def test_a_layer_whose_bytes_are_gone_is_made_again(workshop, index):
    one = index.wheel("one")
    shop = workshop()
    first, _ = run(shop, [wheels_layer(one)])
    (layer,) = first.values()
    shop.blobs.path(layer.digest).unlink()
    again, _ = run(shop, [wheels_layer(one)])
    assert again == first
    assert shop.blobs.size(layer.digest) == layer.size


def test_layers_do_not_depend_on_the_number_of_workers_or_the_order(workshop, index, tmp_path):
    wheels = [index.wheel(f"p{number}", {f"p{number}/data": bytes(5000)}) for number in range(12)]
    layers = [*(wheels_layer(one) for one in wheels), bytecode(*wheels)]
    made = []
    for workers, order in ((1, layers), (7, layers[::-1])):
        place = tmp_path / str(workers)
        blobs = BlobStore(place)
        shop = workshop(workers=workers, blobs=blobs, layers=LayerCache(place / "layers", blobs))
        made.append(run(shop, order)[0])
    assert made[0] == made[1]


def test_progress_counts_bytes_of_wheels(workshop, index):
    wheels = [index.wheel(f"p{number}") for number in range(3)]
    shop = workshop()
    run(shop, [wheels_layer(*wheels)])
    total = sum(one.size for one in wheels)
    for stage in (Stage.FETCH, Stage.ASSEMBLE):
        assert [one for one in shop.reporter.seen if one[0] is stage][-1] == (stage, total, total)


# --- bytecode ---------------------------------------------------------------------------------------------------------
def test_packages_own_tests_are_not_compiled(workshop, index):
    one = index.wheel("one", {"one/tests/test_x.py": b"x = 1\n", "one/contest.py": b"x = 1\n", "one/test/y.py": b""})
    shop = workshop()
    made, _ = run(shop, [bytecode(one)])
    tag = f"cpython-{MINOR.replace('.', '')}"
    assert [name for name, member in members(shop, made[bytecode(one)]).items() if member.isfile()] == [
        f"{SITE}/one/__pycache__/__init__.{tag}.pyc",
        f"{SITE}/one/__pycache__/contest.{tag}.pyc",
    ]


def test_each_bytecode_is_made_by_the_interpreter_of_its_version(workshop, index, monkeypatch):
    """Two Pythons in one run: the likely one was begun with before the locks asked for another."""
    one = index.wheel("one")
    asked, compiled = [], []
    make = assemble.make_bytecode

    def interpreter(version):
        asked.append(version)
        return OURS

    def record(layers, *words, **options):
        compiled.append([layer.python_full for layer in layers])
        return make(layers, *words, **options)

    monkeypatch.setattr(assemble, "make_bytecode", record)
    shop = workshop(interpreter=interpreter)
    run(shop, [bytecode(one, full="3.11.2"), bytecode(one, full="3.13.5")])
    assert sorted(asked) == ["3.11.2", "3.13.5"]
    assert sorted(compiled) == [["3.11.2"], ["3.13.5"]]


def test_no_maker_waits_for_the_base(workshop, index):
    """While bytecode waits for the base's interpreter, the only worker goes on."""
    one, other = index.wheel("one"), index.wheel("other")
    based = threading.Event()

    def interpreter(_version):
        assert based.wait(30)
        return OURS

    with Assembly(workshop(interpreter=interpreter, workers=1)) as assembly:
        assembly.add([bytecode(one), wheels_layer(one)])
        assembly.add([wheels_layer(other)])
        assembly.finish([wheels_layer(one), wheels_layer(other)])
        based.set()
        assert assembly.finish([bytecode(one)])


# --- failures ---------------------------------------------------------------------------------------------------------
def test_a_wheel_that_is_not_there_fails_the_wait(workshop, index):
    one = index.wheel("one")
    index.files.clear()
    with Assembly(workshop()) as assembly:
        assembly.add([wheels_layer(one)])
        with pytest.raises(IndexUnreachable, match=r"one-1\.0-py3-none-any\.whl"):
            assembly.wait_for_wheels()


def test_a_wheel_with_other_bytes_fails(workshop, index):
    one = index.wheel("one")
    index.files[one.filename] = bytes(one.size)
    with Assembly(workshop()) as assembly:
        assembly.add([wheels_layer(one)])
        with pytest.raises(WheelHash):
            assembly.finish([wheels_layer(one)])


def test_a_wheel_that_is_not_what_its_record_says_fails_and_leaves_no_layer(workshop, index):
    good, bad = index.wheel("good"), index.wheel("bad", broken=True)
    shop = workshop()
    with Assembly(shop) as assembly:
        assembly.add([wheels_layer(bad), wheels_layer(good)])
        with pytest.raises(WheelRecord):
            assembly.finish([wheels_layer(good), wheels_layer(bad)])
    assert not list((shop.blobs.root / ".partial").iterdir())
    assert run(shop, [wheels_layer(good)])[0]


def test_a_base_that_fails_ends_the_wait_for_wheels(workshop, index):
    index.held.clear()
    one = index.wheel("one")
    with Assembly(workshop()) as assembly:
        assembly.add([wheels_layer(one)])
        base = assembly._offer_pool.submit(_raise, BaseUnavailable("no apt"))
        begun = time.monotonic()
        with pytest.raises(BaseUnavailable):
            assembly.wait_for_wheels(base)
        assert time.monotonic() - begun < 30
        index.held.set()


def _raise(error):
    raise error


def test_layers_that_nobody_wants_in_the_end_are_not_waited_for(workshop, index):
    one = index.wheel("one")
    never = threading.Event()
    with Assembly(workshop(interpreter=lambda _version: never.wait(30))) as assembly:
        assembly.add([bytecode(one), wheels_layer(one)])
        assert assembly.finish([wheels_layer(one)])
        never.set()


def test_an_abandoned_download_ends(workshop, index):
    """After a failure nobody waits for the gigabytes that are still on their way."""
    one = index.wheel("one", {"one/data": bytes(10)})
    shop = workshop()
    with Assembly(shop) as assembly:
        index.held.clear()
        assembly.add([wheels_layer(one)])
        assembly._abandoned.set()
        index.held.set()
    assert not list((shop.blobs.root / "wheels").rglob("*.whl"))


def test_a_layer_that_can_not_travel_is_told_at_the_end(workshop, index):
    one = index.wheel("one")

    def offer(_layer):
        raise RegistryUnreachable("gone")

    with Assembly(workshop(offer=offer)) as assembly:
        assembly.add([wheels_layer(one)])
        assembly.finish([wheels_layer(one)])
        with pytest.raises(RegistryUnreachable):
            assembly.wait_for_offers()


# --- layers that other builders recorded ------------------------------------------------------------------------------
class Records:
    """Stands for a registry: layers by key, which keys were asked for, and what was kept."""

    def __init__(self, layers=()):
        self.layers = dict(layers)
        self.asked = []
        self.kept = {}
        self.failure = None

    def find(self, key):
        self.asked.append(key)
        if self.failure is not None:
            raise self.failure
        return self.layers.get(key)

    def keep(self, key, layer):
        self.kept[key] = layer


class RecordedLayers(LayerCache):
    is_shared = True

    def __init__(self, root, blobs, records):
        super().__init__(root, blobs)
        self.shared = records.find
        self.share = records.keep


def with_records(workshop, place, records):
    blobs = BlobStore(place)
    return workshop(layers=RecordedLayers(place / "layers", blobs, records), blobs=blobs)


def test_what_is_recorded_is_neither_fetched_nor_made(workshop, index, tmp_path):
    one, other = index.wheel("one"), index.wheel("other")
    wanted = [
        wheels_layer(one),
        wheels_layer(other),
        bytecode(one),
        FilesLayer(title="x", entries=(File(path="a", data=b"a"),)),
    ]
    first = Records()
    made, _ = run(with_records(workshop, tmp_path / "first", first), wanted)
    assert {layer.digest for layer in first.kept.values()} == {layer.digest for layer in made.values()}
    assert len(first.asked) == 4

    index.asked.clear()
    second, place = Records(first.kept), tmp_path / "second"
    shop = with_records(workshop, place, second)
    assert {layer.digest for layer in run(shop, wanted)[0].values()} == {layer.digest for layer in made.values()}
    assert index.asked == []
    assert list(place.rglob("*")) == []
    assert sorted(layer.digest for layer in shop.offered) == sorted(layer.digest for layer in made.values())
    assert second.kept == {}, "what was not made here is not recorded"


def test_of_bytecode_that_is_made_at_once_only_the_rest_is_made(workshop, index, tmp_path, monkeypatch):
    one, other = index.wheel("one"), index.wheel("other")
    first = Records()
    run(with_records(workshop, tmp_path / "first", first), [bytecode(one)])
    compiled, make = [], assemble.make_bytecode

    def record(layers, *words, **options):
        compiled.append(layers)
        return make(layers, *words, **options)

    monkeypatch.setattr(assemble, "make_bytecode", record)
    index.asked.clear()
    second = Records(first.kept)
    made, _ = run(with_records(workshop, tmp_path / "second", second), [bytecode(one), bytecode(other)])
    assert [list(layers) for layers in compiled] == [[bytecode(other)]]
    assert made[bytecode(one)] == next(iter(first.kept.values()))
    assert list(second.kept.values()) == [made[bytecode(other)]]


def test_a_repositorys_files_are_neither_asked_for_nor_recorded(workshop, tmp_path):
    (tmp_path / "code.py").write_text("x = 1")
    records = Records()
    layer = FilesLayer(title="ML repository", entries=(File(path="code.py", data=tmp_path / "code.py"),))
    run(with_records(workshop, tmp_path / "first", records), [layer])
    assert records.asked == []
    assert records.kept == {}


def test_a_failure_while_records_are_looked_for_ends_it(workshop, index, tmp_path):
    records = Records()
    records.failure = BaseUnavailable("of the records")
    with pytest.raises(BaseUnavailable, match="of the records"):
        run(with_records(workshop, tmp_path / "first", records), [wheels_layer(index.wheel("one"))])
    with Assembly(with_records(workshop, tmp_path / "second", records)) as assembly:
        assembly.add([wheels_layer(index.wheel("one"))])
        with pytest.raises(BaseUnavailable, match="of the records"):
            assembly.wait_for_wheels()


def test_wheels_of_what_is_looked_for_are_waited_for(workshop, index, tmp_path):
    """They are known once the records were asked: that is part of the wait."""
    one = index.wheel("one")

    asked = threading.Event()

    class Slow(Records):
        def find(self, key):
            asked.wait(0.05)

    shop = with_records(workshop, tmp_path / "first", Slow())
    with Assembly(shop) as assembly:
        assembly.add([wheels_layer(one)])
        assembly.wait_for_wheels()
        assert shop.wheels.has(one)
        assembly.finish([wheels_layer(one)])
        assembly.wait_for_offers()
