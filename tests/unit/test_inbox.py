"""The observer's TCP port: messages of any length and kind, and whose they are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time

import pytest

from flops.errors import BadSetting, ProjectNotFound, StoreError
from flops.service import inbox as inbox_module
from flops.service.inbox import MESSAGE_LIMIT, Inbox, addressees
from flops.service.operations import Page
from flops.service.project import Project, State


def project(number, state, ended=None):
    return Project(
        id=f"{number:024x}",
        state=state,
        repository="https://h/a/b",
        recipe="sha256:0",
        platforms=("linux/amd64",),
        sla={},
        created=0.0,
        ended=ended,
    )


class Notes:
    """As much of a manager as an inbox asks."""

    def __init__(self, *projects) -> None:
        self.all = projects
        self.noted: list[tuple[str, str]] = []
        self.failure = None

    def project(self, id):  # noqa: A002
        for one in self.all:
            if one.id == id:
                return one
        raise ProjectNotFound("no such project")

    def projects(self, *, limit, offset=0, state=None):
        found = [one for one in self.all if state in (None, one.state)]
        return Page(projects=tuple(found[offset : offset + limit]), total=len(found))

    def note(self, id, text) -> None:  # noqa: A002
        if self.failure:
            raise self.failure
        self.noted.append((id, text))


BUILDING, OTHER = project(1, State.BUILDING), project(2, State.ACCEPTED)
READY = project(3, State.IMAGES_READY, ended=time.time() - 60)
OLD = project(4, State.IMAGES_READY, ended=time.time() - 90_000)
FAILED = project(5, State.FAILED, ended=time.time())


@pytest.mark.parametrize(
    ("known", "text", "expected"),
    [
        ([BUILDING, READY], "round 1", [BUILDING.id]),
        ([OTHER, FAILED], "round 1", [OTHER.id]),
        ([BUILDING, OTHER], "round 1", []),
        ([BUILDING, OTHER], f"project {OTHER.id}: hello", [OTHER.id]),
        ([BUILDING, OTHER], f"image {'f' * 40} {OTHER.id}", [OTHER.id]),
        ([BUILDING], f"of another manager: {'e' * 24}", [BUILDING.id]),
        ([READY, FAILED], "round 1", [READY.id]),
        ([OLD], "round 1", []),
        ([FAILED], "round 1", []),
        ([], "round 1", []),
    ],
)
def test_whose_a_message_is(known, text, expected):
    assert list(addressees(Notes(*known), text)) == expected


@contextlib.asynccontextmanager
async def listening(notes):
    inbox = Inbox(notes)
    port = await inbox.start("127.0.0.1", 0)
    try:
        yield inbox, port
    finally:
        await inbox.close()


async def send(port, data, *, end=True):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()
        if end:
            writer.write_eof()
        await reader.read()
    writer.close()


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


def test_one_message_for_each_connection_whole_and_as_text():
    notes = Notes(BUILDING)

    async def work():
        async with listening(notes) as (_, port):
            await send(port, b"x" * 5000)
            await send(port, "zwei\nZeilen: ü \x1b[2J".encode())
            await send(port, b"\xff\xfe")
            await send(port, b"")
            await send(port, b"  \n")

    run(work())
    assert [text for _, text in notes.noted] == ["x" * 5000, "zwei\nZeilen: ü \\x1b[2J", "\ufffd\ufffd"]
    assert {id_ for id_, _ in notes.noted} == {BUILDING.id}


def test_the_limit_holds_and_what_came_by_then_counts():
    notes = Notes(BUILDING)

    async def work():
        async with listening(notes) as (_, port):
            await send(port, b"y" * (MESSAGE_LIMIT + 100_000))

    run(work())
    assert [len(text) for _, text in notes.noted] == [MESSAGE_LIMIT]


def test_a_sender_that_keeps_its_connection_is_heard_too(monkeypatch):
    monkeypatch.setattr(inbox_module, "SILENCE", 0.1)
    notes = Notes(BUILDING)

    async def work():
        async with listening(notes) as (_, port):
            await send(port, b"still here", end=False)

    run(work())
    assert notes.noted == [(BUILDING.id, "still here")]


def test_many_at_once_are_all_heard_and_too_many_are_refused(monkeypatch):
    monkeypatch.setattr(inbox_module, "CONNECTIONS", 20)
    notes = Notes(BUILDING)

    async def work():
        async with listening(notes) as (inbox, port):
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
            while len(inbox._open) < 20:  # noqa: ASYNC110 - nothing tells when a connection was taken
                await asyncio.sleep(0.005)
            await send(port, b"one too many")
            for _, writer in silent:
                writer.write(b"hello")
                writer.write_eof()
            for reader, writer in silent:
                await reader.read()
                writer.close()
            await asyncio.gather(*(send(port, f"later {number}".encode()) for number in range(15)))

    run(work())
    texts = [text for _, text in notes.noted]
    assert texts.count("hello") == 20
    assert sorted(texts[20:]) == sorted(f"later {number}" for number in range(15))


@pytest.mark.parametrize(
    ("limits", "size", "heard"), [({"BYTES": 200_000}, 50_000, {3, 4, 5}), ({"QUEUE": 20}, 1, {20, 21})]
)
def test_all_messages_together_have_a_bound(monkeypatch, caplog, limits, size, heard):
    """Nobody enters them, since the database hangs: what is beyond is dropped, in one line, and later ones are heard again."""
    for name, value in limits.items():
        monkeypatch.setattr(inbox_module, name, value)
    notes, hang = Notes(BUILDING), threading.Event()
    note, most = notes.note, []

    def slow(id, text):  # noqa: A002
        hang.wait(30)
        note(id, text)

    notes.note = slow

    async def work():
        async with listening(notes) as (inbox, port):
            for _ in range(20):
                await asyncio.gather(*(send(port, b"z" * size) for _ in range(5)))
                most.append(inbox._held)
            hang.set()
            await inbox._queue.join()
            assert inbox._held == 0
            await send(port, b"later")

    run(work())
    assert max(most) <= 200_000 + MESSAGE_LIMIT
    assert [len(text) for _, text in notes.noted].count(size) in heard
    assert notes.noted[-1][1] == "later"
    assert caplog.text.count("messages dropped") == 1


def test_a_message_for_nobody_stands_in_the_log(caplog):
    async def work():
        async with listening(Notes()) as (_, port):
            await send(port, b"hello?")

    with caplog.at_level(logging.INFO, "flops.service.inbox"):
        run(work())
    assert "a message from 127.0.0.1 for no project: hello?" in caplog.text


def test_a_full_database_loses_a_message_and_not_the_inbox(caplog):
    notes = Notes(BUILDING)

    async def work():
        async with listening(notes) as (inbox, port):
            notes.failure = StoreError("the disk is full")
            await send(port, b"lost")
            await inbox._queue.join()
            notes.failure = None
            await send(port, b"kept")

    run(work())
    assert [text for _, text in notes.noted] == ["kept"]
    assert "the disk is full" in caplog.text


def test_it_lives_in_a_thread_of_its_own_beside_a_program_without_a_loop():
    notes = Notes(BUILDING)
    with inbox_module.inbox(notes, "127.0.0.1", 0) as (_, port):
        for number in range(3):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(b"text %d" % number)
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(1) == b""  # it has been read
    assert [text for _, text in notes.noted] == ["text 0", "text 1", "text 2"]


def test_a_taken_port_is_named():
    async def work():
        async with listening(Notes()) as (_, port):
            with pytest.raises(BadSetting, match=str(port)):
                await Inbox(Notes()).start("127.0.0.1", port)

    run(work())
