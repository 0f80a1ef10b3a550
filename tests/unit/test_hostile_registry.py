"""A registry that answers with too much, in the wrong shape, or packed to explode."""

import gzip
import json

import httpx
import pytest
import zstandard

from flops.errors import AuthRealm, BadImage, RegistryAuth, RegistryError, RegistryRefused, RegistryUnreachable
from flops.http import Retry
from flops.oci import pull, responses
from flops.oci.blobs import BlobStore
from flops.oci.client import RegistryClient
from flops.oci.descriptor import Descriptor
from flops.oci.layer import GZIP
from flops.oci.reference import Registry

CHALLENGE = {"WWW-Authenticate": 'Bearer realm="https://registry.example.org/token"'}


class Counted(httpx.SyncByteStream):
    """A body in pieces; `sent` counts the bytes that were taken from it."""

    def __init__(self, pieces):
        self.pieces, self.sent = pieces, 0

    def __iter__(self):
        for piece in self.pieces:
            self.sent += len(piece)
            yield piece


def endless():
    return Counted(b"x" * 65536 for _ in range(4096))


def connect(answer):
    quick = Retry(tries=2, sleep=lambda _seconds: None)
    return RegistryClient(
        Registry.parse("registry.example.org"),
        transport=httpx.MockTransport(answer),
        retry=quick,
    )


def token_server(answer):
    """A registry that always asks for a token, which `answer` gives."""
    return connect(lambda request: answer() if request.url.path == "/token" else httpx.Response(401, headers=CHALLENGE))


def test_an_endless_answer_is_left_alone():
    body = endless()
    with pytest.raises(RegistryRefused, match="larger than"):
        connect(lambda _: httpx.Response(200, stream=body)).get_manifest("a/b", "t")
    assert body.sent < responses.LIMIT + 2 * 65536


def test_an_endless_challenge_is_left_alone():
    body = endless()
    with pytest.raises(RegistryRefused, match="larger than"):
        connect(lambda _: httpx.Response(401, headers=CHALLENGE, stream=body)).ping()
    assert body.sent < responses.LIMIT + 2 * 65536


def test_an_endless_token_is_left_alone():
    body = endless()
    with pytest.raises(RegistryRefused, match="larger than"):
        token_server(lambda: httpx.Response(200, stream=body)).ping()
    assert body.sent < responses.LIMIT + 2 * 65536


def test_an_answer_in_drops_ends(monkeypatch):
    monkeypatch.setattr(responses, "SECONDS", -1)
    with pytest.raises(RegistryUnreachable, match="for one answer"):
        connect(lambda _: httpx.Response(200, stream=Counted([b"{", b"}"]))).get_manifest("a/b", "t")


def test_an_answer_that_a_proxy_packed_is_read():
    packed = gzip.compress(b'{"tags": ["v1"]}')
    answer = {"content-encoding": "gzip"}
    client = connect(lambda _: httpx.Response(200, headers=answer, stream=Counted([packed])))
    assert client.tags("a/b") == ("v1",)


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(bytes(64 * 1024 * 1024))),
        ("zstd", zstandard.ZstdCompressor().compress(bytes(64 * 1024 * 1024))),
        ("gzip", b"no gzip"),
    ],
)
def test_a_bomb_is_not_unpacked(encoding, packed):
    client = connect(lambda _: httpx.Response(200, headers={"content-encoding": encoding}, stream=Counted([packed])))
    with pytest.raises(RegistryRefused):
        client.tags("a/b")


def test_a_bomb_in_a_challenge_is_not_unpacked():
    packed = zstandard.ZstdCompressor().compress(bytes(64 * 1024 * 1024))
    seen = []

    def answer(request):
        seen.append(httpx.Response(401, headers={**CHALLENGE, "content-encoding": "zstd"}, stream=Counted([packed])))
        return seen[-1]

    with pytest.raises(RegistryAuth):
        connect(answer).ping()
    assert all(len(response.content) == len(packed) for response in seen)


@pytest.mark.parametrize(
    "document",
    [
        b"[" * 200_000,
        b'{"token": "a", "expires_in": 1' + b"0" * 400 + b"}",
        b'{"token": "a", "expires_in": 1' + b"0" * 5000 + b"}",
        b'{"token": "a", "expires_in": []}',
        json.dumps({"token": "\u00e9"}).encode(),
        b"\xff\xfe",
    ],
)
def test_a_token_that_is_none(document):
    with pytest.raises(RegistryAuth):
        token_server(lambda: httpx.Response(200, stream=Counted([document]))).ping()


@pytest.mark.parametrize("realm", ["https://xn--/t", "https://[::1/", "https://a\u3002/" + "b" * 300])
def test_a_realm_that_names_no_host(realm):
    header = [(b"www-authenticate", f'Bearer realm="{realm}"'.encode())]
    with pytest.raises(AuthRealm):
        connect(lambda _: httpx.Response(401, headers=header)).ping()


@pytest.mark.parametrize(
    "location", ["https://xn--/", "https://[::1", "//evil\x00", "https://registry.example.org:0x/"]
)
def test_a_location_that_names_no_host(location):
    header = [(b"location", location.encode())]
    with pytest.raises(RegistryError):
        connect(lambda _: httpx.Response(307, headers=header)).get_manifest("a/b", "t")


@pytest.mark.parametrize("charset", ["zlib_codec", "hex", "idna", "undefined", "rot13", "no-such"])
def test_a_charset_that_is_none(charset):
    header = {"content-type": f"text/html; charset={charset}"}
    with pytest.raises(RegistryRefused):
        connect(lambda _: httpx.Response(400, headers=header, stream=Counted([b"\xffgarbage"]))).get_manifest(
            "a/b", "t"
        )


def test_a_small_layer_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    store, packed = BlobStore(tmp_path), gzip.compress(bytes(8 * 1024 * 1024))
    descriptor = Descriptor(media_type=GZIP, digest=store.put(packed), size=len(packed))
    assert pull._unpacked(store, descriptor)[1] == 8 * 1024 * 1024
    monkeypatch.setattr(pull, "_LAYER_LIMIT", 4 * 1024 * 1024)
    with pytest.raises(BadImage, match="unpacks to more than"):
        pull._unpacked(store, descriptor)


def test_a_blob_in_drops_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(responses, "PACE_SECONDS", -1)
    client = connect(lambda _: httpx.Response(200, stream=Counted([b"x"] * 10)))
    with pytest.raises(RegistryUnreachable, match="only 1 bytes came"):
        client.fetch_blob("a/b", "sha256:" + "0" * 64, lambda pieces: [None for _ in pieces])
