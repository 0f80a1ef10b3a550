"""Pages of the package index, from answers that are played."""

import httpx
import pytest

from flops.errors import IndexUnreachable
from flops.locking import index as module
from flops.locking.index import Index

PAGE = b'{"files": [{"filename": "plain-1.0-py3-none-any.whl"}]}'


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0)


def index(*answers, retries=2):
    left = list(answers)

    def handler(request):
        assert request.url.path == "/simple/plain/"
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, body = answer
        return httpx.Response(status, content=body, headers={"content-type": "application/vnd.pypi.simple.v1+json"})

    return Index("https://127.0.0.1/simple/", transport=httpx.MockTransport(handler), retries=retries), left


def test_a_page_becomes_a_project():
    client, _ = index((200, PAGE))
    with client:
        assert [str(version) for version in client.project("plain").versions] == ["1.0"]


@pytest.mark.parametrize("first", [httpx.ConnectError("no route"), (503, b""), (429, b"")])
def test_a_moment_without_an_answer_is_waited_for(first):
    client, left = index(first, first, (200, PAGE))
    assert client.project("plain") is not None
    assert left == []


@pytest.mark.parametrize("status", [404, 410])
def test_what_is_not_there_is_asked_for_once(status):
    client, left = index((status, b""), (200, PAGE))
    assert client.project("plain") is None
    assert len(left) == 1
    assert index((status, b""))[0].knows("plain") is False


@pytest.mark.parametrize(
    "answers",
    [
        [httpx.ReadTimeout("slow")] * 3,
        [(500, b"")] * 3,
        [(401, b"")],
        [(400, b"")],
        [(200, b"<html>")],
        [(200, b"[1]")],
    ],
)
def test_an_index_that_does_not_say_is_never_the_users_fault(answers):
    client, left = index(*answers)
    with pytest.raises(IndexUnreachable):
        client.project("plain")
    assert left == []


def test_a_page_has_an_end(monkeypatch):
    monkeypatch.setattr(module, "PAGE_LIMIT", 10)
    client, _ = index((200, PAGE), retries=0)
    with pytest.raises(IndexUnreachable, match="more than 10 bytes"):
        client.project("plain")
