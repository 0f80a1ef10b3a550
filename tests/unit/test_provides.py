"""What a wheel holds, read from its end: against servers with ranges, without them, and that lie."""

from __future__ import annotations

import hashlib
import io
import zipfile

import httpx
import pytest

from flops.errors import IndexUnreachable, WheelUnsafe
from flops.locking.lock import LockedWheel
from flops.wheels.provides import Provides, modules, provided
from flops.wheels.wheel_cache import WheelCache

FILES = {
    "shop/__init__.py": "",
    "shop/till.py": "",
    "single.py": "",
    "_fast.cpython-311-x86_64-linux-gnu.so": "",
    "shop-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: shop\nVersion: 1.0\nRequires-Dist: six>=1\n"
    'Requires-Dist: extra-thing; extra == "more"\n\nRequires-Dist: not-a-header\n',
    "shop-1.0.dist-info/RECORD": "",
}


def archive(files=None, *, padding: int = 0, method=zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as zipped:
        zipped.writestr("shop/data.bin", bytes(padding), zipfile.ZIP_STORED)
        for name, text in (files or FILES).items():
            zipped.writestr(name, text)
    return buffer.getvalue()


def locked(data: bytes, *, size: bool = True) -> LockedWheel:
    return LockedWheel(
        name="shop",
        version="1.0",
        filename="shop-1.0-py3-none-any.whl",
        url="http://index.example/shop-1.0-py3-none-any.whl",
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data) if size else None,
    )


class Server:
    """Gives one file, by ranges unless told otherwise; notes what was asked for."""

    def __init__(self, data: bytes, *, ranges: bool = True, status: int | None = None) -> None:
        self.data, self.ranges, self.status = data, ranges, status
        self.asked: list[str | None] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        what = request.headers.get("Range")
        self.asked.append(what)
        if self.status is not None:
            return httpx.Response(self.status)
        if what is None or not self.ranges:
            return httpx.Response(200, stream=httpx.ByteStream(self.data))
        first, _, last = what.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(self.data) - int(last))
        end = min(int(last) if first and last else len(self.data) - 1, len(self.data) - 1)
        place = {"Content-Range": f"bytes {start}-{end}/{len(self.data)}"}
        return httpx.Response(206, stream=httpx.ByteStream(self.data[start : end + 1]), headers=place)


@pytest.fixture
def reading(tmp_path):
    def make(server) -> Provides:
        transport = httpx.MockTransport(server)
        wheels = WheelCache(tmp_path / "wheels", transport=transport, sleep=lambda _: None)
        return Provides(tmp_path / "provides", wheels, transport=transport)

    return make


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["numpy/__init__.py", "numpy/core/x.py"], {"numpy"}),
        (["six.py", "six-1.dist-info/METADATA", "six-1.dist-info/top_level.py"], {"six"}),
        (["_cffi.abi3.so", "yarl/_quoting.cpython-311-x86_64-linux-gnu.so", "yarl/__init__.py"], {"_cffi", "yarl"}),
        (["google/protobuf/__init__.py", "google/_upb/_message.abi3.so"], {"google.protobuf", "google._upb._message"}),
        (["x-1.data/purelib/x/__init__.py", "x-1.data/scripts/tool.py", "x-1.data/platlib/_x.so"], {"x", "_x"}),
        (["nvidia/cublas/lib/libcublas.so.12", "nvidia/__init__.pyi", "share/man/x.1"], set()),
        (["a/b/c/d/e.py"], {"a.b.c"}),
        (["not-a-name/x.py", "1st.py", "ok/__init__.so"], {"ok"}),
        (["setuptools/__init__.py", "distutils-precedence.pth"], {"setuptools", "distutils"}),
    ],
)
def test_modules_are_the_topmost_packages_with_an_init(names, expected):
    assert modules(names) == expected


@pytest.mark.parametrize(
    ("module", "found"),
    [
        ("google.protobuf", True),
        ("google", True),
        ("google.protobuf.message", True),
        ("google.protobufs", False),
        ("google.cloud", False),
        ("goog", False),
    ],
)
def test_a_module_is_provided_at_below_and_above_a_root(module, found):
    assert provided(module, {"google.protobuf"}) is found


@pytest.mark.parametrize("size", [True, False], ids=["size known", "size unknown"])
def test_a_large_wheel_is_read_by_its_end_alone(reading, size):
    data = archive(padding=300_000)
    server = Server(data)
    wheel = locked(data, size=size)
    assert reading(server).modules([wheel]) == {wheel.sha256: {"shop", "single", "_fast"}}
    assert len(server.asked) == 1
    assert None not in server.asked


def test_a_long_directory_takes_a_second_request(reading):
    data = archive(FILES | {f"shop/module_{number}.py": "" for number in range(1500)})
    server = Server(data)
    assert reading(server).modules([locked(data)])[locked(data).sha256] == {"shop", "single", "_fast"}
    assert len(server.asked) == 2


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
@pytest.mark.parametrize("padding", [0, 300_000])
def test_requirements_come_from_the_metadata(reading, method, padding):
    files = {name: FILES[name] for name in sorted(FILES, reverse=True)}
    data = archive(files, padding=padding, method=method)
    found = reading(Server(data)).requires([locked(data)])
    assert found == {locked(data).sha256: ("six>=1", 'extra-thing; extra == "more"')}


def test_metadata_far_from_the_end_are_fetched(reading):
    order = {"shop-1.0.dist-info/METADATA": FILES["shop-1.0.dist-info/METADATA"]}
    data = archive(order | {"shop/large.py": "".join(map(chr, range(33, 127))) * 3000}, method=zipfile.ZIP_STORED)
    server = Server(data)
    assert reading(server).requires([locked(data)])[locked(data).sha256][0] == "six>=1"
    assert len(server.asked) == 2


PYTHON = FILES | {
    "shop-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nRequires-Python: >=3.8, <3.11\n\nRequires-Python: 2\n"
}


def test_the_python_that_is_asked_for_comes_with_the_modules_and_costs_no_request(reading):
    data = archive(PYTHON, padding=300_000)
    server = Server(data)
    provides = reading(server)
    assert provides.pythons([locked(data)]) == {}
    provides.modules([locked(data)])
    assert provides.pythons([locked(data)]) == {locked(data).sha256: ">=3.8, <3.11"}
    assert len(server.asked) == 1
    plain = archive()
    provides = reading(Server(plain))
    provides.modules([locked(plain)])
    assert provides.pythons([locked(plain)]) == {}


def test_the_python_that_is_asked_for_is_not_fetched_where_it_lies_far_from_the_end(reading):
    name = "shop-1.0.dist-info/METADATA"
    large = {"shop/large.py": "".join(map(chr, range(33, 127))) * 3000}
    data = archive({name: PYTHON[name]} | large, method=zipfile.ZIP_STORED)
    server = Server(data)
    provides = reading(server)
    provides.modules([locked(data)])
    assert provides.pythons([locked(data)]) == {}
    assert len(server.asked) == 1


@pytest.mark.parametrize(("data", "known"), [(archive(PYTHON), True), (archive()[:-30], False), (b"no zip", False)])
def test_the_python_that_a_wheel_which_is_here_asks_for(reading, tmp_path, data, known):
    path = WheelCache(tmp_path / "wheels").path(locked(data))
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    server = Server(b"", status=500)
    assert reading(server).pythons([locked(data)]) == ({locked(data).sha256: ">=3.8, <3.11"} if known else {})
    assert server.asked == []


def test_what_was_read_is_remembered_by_hash(reading):
    data = archive()
    first = reading(Server(data)).modules([locked(data)])
    silent = Server(b"", status=500)
    assert reading(silent).modules([locked(data)]) == first
    assert silent.asked == []


def test_a_damaged_memory_is_read_again(reading, tmp_path):
    data = archive()
    reading(Server(data)).modules([locked(data)])
    for kept in (tmp_path / "provides").iterdir():
        kept.write_text("{")
    server = Server(data)
    assert reading(server).modules([locked(data)])[locked(data).sha256] == {"shop", "single", "_fast"}
    assert server.asked


def test_without_ranges_the_wheel_itself_is_fetched_and_kept(reading, tmp_path):
    data = archive(padding=300_000)
    server = Server(data, ranges=False)
    assert reading(server).modules([locked(data)])[locked(data).sha256] == {"shop", "single", "_fast"}
    assert server.asked[-1] is None
    assert WheelCache(tmp_path / "wheels").has(locked(data))


def test_a_wheel_that_is_here_is_not_asked_for(reading, tmp_path):
    data = archive()
    path = WheelCache(tmp_path / "wheels").path(locked(data))
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    server = Server(b"", status=500)
    assert reading(server).modules([locked(data)])[locked(data).sha256] == {"shop", "single", "_fast"}
    assert server.asked == []


@pytest.mark.parametrize(
    "data",
    [b"no zip" * 50, archive()[:-30], archive({"shop-1.0.dist-info/RECORD": ""})],
    ids=["text", "cut off", "no metadata"],
)
def test_a_wheel_that_can_not_be_read_is_told(reading, data):
    with pytest.raises(WheelUnsafe, match=r"shop-1\.0-py3-none-any\.whl can't be read"):
        reading(Server(data)).requires([locked(data)])


def test_another_size_than_was_locked_is_refused(reading):
    data = archive(padding=10)
    wheel = locked(archive())
    with pytest.raises(WheelUnsafe, match="another size"):
        reading(Server(data)).modules([wheel])


def test_a_server_that_refuses_is_told_apart(reading):
    with pytest.raises(IndexUnreachable, match="status 403"):
        reading(Server(b"", status=403)).modules([locked(archive())])


def test_a_body_longer_than_its_header_says_is_not_read(reading):
    data = archive()

    def server(request: httpx.Request) -> httpx.Response:
        if "Range" not in request.headers:
            return httpx.Response(200, stream=httpx.ByteStream(data))
        return httpx.Response(
            206, stream=httpx.ByteStream(bytes(10_000)), headers={"Content-Range": f"bytes 0-99/{len(data)}"}
        )

    assert reading(server).modules([locked(data)])[locked(data).sha256] == {"shop", "single", "_fast"}


def test_credentials_go_to_the_index_alone(tmp_path):
    data = archive()
    seen: dict[str, bool] = {}

    def server(request: httpx.Request) -> httpx.Response:
        seen[request.url.host] = "Authorization" in request.headers
        return Server(data)(request)

    transport = httpx.MockTransport(server)
    wheels = WheelCache(tmp_path / "wheels", index_url="http://me:secret@index.example/simple", transport=transport)
    there = locked(data)
    other = archive(padding=1)
    elsewhere = LockedWheel(**{**locked(other).__dict__, "url": "http://files.example/x.whl", "size": len(data)})
    Provides(tmp_path / "provides", wheels, transport=transport).modules([there, elsewhere])
    assert seen == {"index.example": True, "files.example": False}
