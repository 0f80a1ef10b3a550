from __future__ import annotations

import errno
import hashlib
import os

import httpx
import pytest

from flops.errors import BuildError, DiskFull, IndexUnreachable, WheelHash
from flops.locking.lock import LockedWheel
from flops.oci import responses as answers
from flops.wheels import wheel_cache as wheels
from flops.wheels.wheel_cache import WheelCache

DATA = os.urandom(300_000)


def locked(
    name: str = "plain", data: bytes = DATA, *, size: int | None = -1, host: str = "files.invalid"
) -> LockedWheel:
    return LockedWheel(
        name=name,
        version="1.0",
        filename=f"{name}-1.0-py3-none-any.whl",
        url=f"https://{host}/{name}-1.0-py3-none-any.whl",
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data) if size == -1 else size,
    )


class Cut(httpx.SyncByteStream):
    """A body that breaks off."""

    def __iter__(self):
        yield DATA[:100_000]
        raise httpx.ReadError("connection reset")


class Script:
    """Answers one after the other; the last again and again. Exceptions are raised."""

    def __init__(self, *answers) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer

    def cache(self, root, **options) -> WheelCache:
        return WheelCache(root, transport=httpx.MockTransport(self), sleep=self.pauses.append, **options)


def body(data: bytes) -> httpx.Response:
    return httpx.Response(200, stream=httpx.ByteStream(data))


def good() -> httpx.Response:
    return body(DATA)


def files(root) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file())


def test_a_wheel_is_fetched_once(tmp_path):
    script, counted = Script(good), []
    with script.cache(tmp_path) as cache:
        assert not cache.has(locked())
        path = cache.fetch(locked(), on_bytes=counted.append)
        assert path.read_bytes() == DATA
        assert cache.has(locked())
        assert cache.fetch(locked(size=None)) == path
    assert sum(counted) == len(DATA)
    assert len(script.requests) == 1
    assert script.requests[0].headers["Accept-Encoding"] == "identity"
    assert files(tmp_path) == [f"{locked().sha256}.whl"]


def test_a_file_of_another_size_in_the_cache_is_fetched_anew(tmp_path):
    with Script(good).cache(tmp_path) as cache:
        path = cache.path(locked())
        path.parent.mkdir(parents=True)
        path.write_bytes(DATA[:-1])
        assert cache.fetch(locked()).read_bytes() == DATA


@pytest.mark.parametrize(
    "failure",
    [
        httpx.Response(500),
        httpx.Response(503),
        httpx.Response(429),
        httpx.Response(408),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        lambda: httpx.Response(200, stream=Cut()),
    ],
)
def test_what_may_pass_is_tried_again(tmp_path, failure):
    script, counted = Script(failure, failure, failure, good), []
    with script.cache(tmp_path) as cache:
        assert cache.fetch(locked(), on_bytes=counted.append).read_bytes() == DATA
    assert len(script.pauses) == 3
    assert all(0.25 <= pause / 2**number <= 0.75 for number, pause in enumerate(script.pauses))
    assert sum(counted) == len(DATA)
    assert len(files(tmp_path)) == 1


def test_what_does_not_pass_ends_after_four_attempts(tmp_path):
    script = Script(httpx.ConnectError("refused by https://me:s3cret@files.invalid/"))
    with script.cache(tmp_path) as cache, pytest.raises(IndexUnreachable) as caught:
        cache.fetch(locked())
    assert len(script.requests) == 4
    assert "plain-1.0" in caught.value.message
    assert "s3cret" not in caught.value.message
    assert files(tmp_path) == []


def test_retry_after_is_obeyed_or_ends_at_once(tmp_path):
    script = Script(
        httpx.Response(429, headers={"Retry-After": "40"}),
        httpx.Response(503, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        httpx.Response(503, headers={"Retry-After": "86400"}),
    )
    with script.cache(tmp_path) as cache, pytest.raises(IndexUnreachable, match=r"86400 s"):
        cache.fetch(locked())
    assert script.pauses[0] == 40
    assert script.pauses[1] <= 1.5
    assert len(script.pauses) == 2


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_does_not_pass_is_asked_once(tmp_path, status):
    script = Script(httpx.Response(status))
    with script.cache(tmp_path) as cache, pytest.raises(IndexUnreachable, match=str(status)):
        cache.fetch(locked())
    assert len(script.requests) == 1


@pytest.mark.parametrize("wrong", [DATA[:-1] + b"x" * 2, DATA[:-1], bytes(len(DATA)), b""])
@pytest.mark.parametrize("size", [-1, None])
def test_other_bytes_than_the_locked_are_refused_after_one_retry(tmp_path, wrong, size):
    script, counted = Script(lambda: body(wrong)), []
    with script.cache(tmp_path) as cache, pytest.raises(WheelHash, match="plain"):
        cache.fetch(locked(size=size), on_bytes=counted.append)
    assert len(script.requests) == 2
    assert sum(counted) == 0
    assert files(tmp_path) == []


def test_wrong_bytes_once_are_an_accident(tmp_path):
    with Script(body(b"proxy login"), good).cache(tmp_path) as cache:
        assert cache.fetch(locked()).read_bytes() == DATA


def test_an_endless_body_is_cut_at_the_locked_size(tmp_path):
    pulled = 0

    class Endless(httpx.SyncByteStream):
        def __iter__(self):
            nonlocal pulled
            for _ in range(10_000):
                pulled += 65_536
                yield bytes(65_536)

    with Script(lambda: httpx.Response(200, stream=Endless())).cache(tmp_path) as cache, pytest.raises(WheelHash):
        cache.fetch(locked())
    assert pulled <= 2 * (len(DATA) + 2 * wheels.PIECE)


def test_a_full_disk_is_told_and_left_clean(tmp_path, monkeypatch):
    def full(descriptor, piece):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with Script(good).cache(tmp_path) as cache, pytest.raises(DiskFull):
        cache.fetch(locked())
    assert files(tmp_path) == []


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "wheels").write_text("in the way")
    with Script(good).cache(tmp_path / "wheels") as cache, pytest.raises(BuildError, match="can't be written"):
        cache.fetch(locked())


def test_the_indexs_credentials_go_to_its_origin_only(tmp_path):
    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, request.headers.get("Authorization")))
        if request.url.path.startswith("/moved"):
            return httpx.Response(302, headers={"Location": "https://cdn.invalid/x"})
        return good()

    seen: list[tuple[str, str | None]] = []
    moved = locked("moved", host="index.invalid")
    basic = httpx.BasicAuth("me", "s3cr@t")
    expected = next(basic.auth_flow(httpx.Request("GET", "https://index.invalid"))).headers["Authorization"]
    url = "https://me:s3cr%40t@index.invalid/simple"
    for number, wheel in enumerate([moved, locked(host="files.invalid"), locked(host="index.invalid")]):
        with WheelCache(tmp_path / str(number), index_url=url, transport=httpx.MockTransport(answer)) as cache:
            cache.fetch(wheel)
    assert seen == [
        ("index.invalid", expected),
        ("cdn.invalid", None),
        ("files.invalid", None),
        ("index.invalid", expected),
    ]


def test_a_wheel_of_unknown_size_is_not_taken_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "LARGEST", len(DATA) - 1)
    with Script(good, good).cache(tmp_path) as cache, pytest.raises(WheelHash):
        cache.fetch(locked(size=None))
    assert files(tmp_path) == []


def test_an_address_whose_host_is_no_name_is_told(tmp_path):
    with WheelCache(tmp_path) as cache, pytest.raises(IndexUnreachable):
        cache.fetch(locked(host="xn--"))


def test_a_wheel_in_drops_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "PACE_SECONDS", -1)
    drops = Script(lambda: httpx.Response(200, stream=Drops()))
    with drops.cache(tmp_path) as cache, pytest.raises(IndexUnreachable, match="only 1 bytes came"):
        cache.fetch(locked())
    assert files(tmp_path) == []


class Drops(httpx.SyncByteStream):
    def __iter__(self):
        for byte in DATA:
            yield bytes([byte])
