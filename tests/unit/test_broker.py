"""Publishing to a broker that acknowledges, hangs, refuses and breaks; and the mirror and the builder's messages over it."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import struct
import threading
import time
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.ports import unused_port

from flops.compat import announcer as announcer_module
from flops.compat.announcer import Announcer
from flops.compat.broker import BrokerAddress, Publisher
from flops.errors import BadSetting, BrokerUnreachable
from flops.service import mirror as mirror_module
from flops.service.mirror import Mirror

SILENT = "silent"
REFUSE = "refuse"
BREAK = "break"
FORGET = "forget"
"""Keep the message and break before the acknowledgement."""


class Broker:
    """As much of MQTT 3.1.1 as a publisher needs. `script(nth)` says what becomes of the nth message."""

    def __init__(self, *, connect=None, script=lambda nth: None, port=0) -> None:
        self.connect, self.script = connect, script
        self.messages: list[tuple[str, str, bool]] = []
        self.logins: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", port))
        self.port = self._server.getsockname()[1]
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    @property
    def address(self) -> BrokerAddress:
        return BrokerAddress(host="127.0.0.1", port=self.port)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(timeout=10)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._talk, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _talk(self, connection) -> None:
        try:
            with connection, connection.makefile("rb") as stream:
                while first := stream.read(1):
                    self._packet(connection, first[0], _body(stream))
        except (OSError, ConnectionError, ValueError):
            return

    def _packet(self, connection, first, body) -> None:
        match first >> 4:
            case 1:
                self.logins.append(body)
                if self.connect == BREAK:
                    raise ConnectionError
                if self.connect != SILENT:
                    connection.sendall(b"\x20\x02\x00" + (b"\x05" if self.connect == REFUSE else b"\x00"))
            case 3:
                length = struct.unpack("!H", body[:2])[0]
                topic, number = body[2 : 2 + length].decode(), body[2 + length : 4 + length]
                order = self.script(len(self.messages) + 1)
                if order == BREAK:
                    raise ConnectionError
                self.messages.append((topic, body[4 + length :].decode(), bool(first & 1)))
                if order == FORGET:
                    raise ConnectionError
                if order != SILENT:
                    connection.sendall(b"\x40\x02" + number)
            case 12:
                connection.sendall(b"\xd0\x00")


def _body(stream) -> bytes:
    length, shift = 0, 0
    while True:
        one = stream.read(1)[0]
        length |= (one & 127) << shift
        shift += 7
        if not one & 128:
            return stream.read(length)


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


# --- addresses ---
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", ("10.0.0.1", 9027, False, None, None)),
        ("broker.example.org:1883", ("broker.example.org", 1883, False, None, None)),
        ("mqtt://h", ("h", 9027, False, None, None)),
        ("mqtts://h", ("h", 8883, True, None, None)),
        ("mqtts://u:p%40ss@h:1", ("h", 1, True, "u", "p@ss")),
        ("mqtt://u@h", ("h", 9027, False, "u", None)),
        ("u:p:q@h", ("h", 9027, False, "u", "p:q")),
        ("fdff:1000::1", ("fdff:1000::1", 9027, False, None, None)),
        ("[fdff:1000::1]:1883", ("fdff:1000::1", 1883, False, None, None)),
    ],
)
def test_addresses_are_read(text, expected):
    found = BrokerAddress.parse(text, port=9027)
    assert (found.host, found.port, found.tls, found.username, found.password) == expected
    assert BrokerAddress.parse(str(found), port=found.port).host == found.host


@pytest.mark.parametrize(
    "text", ["", "http://h", "://h", "mqtt://", "h:0", "h:70000", "h:x", "h/path", "h h", "u:secret@"]
)
def test_other_addresses_are_refused_without_showing_a_password(text):
    with pytest.raises(BadSetting) as failure:
        BrokerAddress.parse(text, port=9027)
    assert "secret" not in failure.value.message + failure.value.hint


@given(st.text(max_size=40))
def test_no_address_is_a_bug(text):
    try:
        found = BrokerAddress.parse(text, port=9027)
    except BadSetting:
        return
    assert 0 < found.port < 65536
    assert found.host


# --- publishing ---
def test_messages_are_acknowledged_in_order_over_one_connection():
    with Broker() as broker, Publisher(broker.address, seconds=5) as publisher:
        for number in range(20):
            publisher.publish("a/b", f"grün {number}", retain=number % 2 == 1)
        assert broker.messages == [("a/b", f"grün {number}", number % 2 == 1) for number in range(20)]
        assert len(broker.logins) == 1


def test_a_login_is_sent_and_never_shown():
    with Broker() as broker:
        address = BrokerAddress.parse(f"mqtt://ann:sesame@127.0.0.1:{broker.port}", port=1)
        with Publisher(address, seconds=5) as publisher:
            publisher.publish("t", "x")
        assert b"ann" in broker.logins[0]
        assert b"sesame" in broker.logins[0]
        assert "sesame" not in repr(address) + str(address)


@pytest.mark.parametrize("order", [SILENT, REFUSE, BREAK])
def test_a_broker_that_takes_nobody_is_unreachable(order):
    with Broker(connect=order) as broker, Publisher(broker.address, seconds=0.5) as publisher:
        with pytest.raises(BrokerUnreachable):
            publisher.publish("t", "x")
        assert broker.messages == []


@pytest.mark.parametrize("order", [SILENT, BREAK, FORGET])
def test_a_message_that_was_not_acknowledged_is_not_published(order):
    with (
        Broker(script=lambda nth: order if nth == 1 else None) as broker,
        Publisher(broker.address, seconds=0.5) as publisher,
    ):
        broker.script = lambda nth: order
        with pytest.raises(BrokerUnreachable):
            publisher.publish("t", "first")
        broker.script = lambda nth: None
        publisher.publish("t", "second")
        kept = [text for _, text, _ in broker.messages]
        assert kept[-1] == "second"
        assert kept.count("second") == 1
        assert kept.count("first") == (0 if order == BREAK else 1)


def test_nobody_there_is_unreachable_and_somebody_later_is_reached():
    port = unused_port()
    with Publisher(BrokerAddress(host="127.0.0.1", port=port), seconds=2) as publisher:
        with pytest.raises(BrokerUnreachable, match=f"127.0.0.1:{port}"):
            publisher.publish("t", "x")
        with Broker(port=port) as broker:
            publisher.publish("t", "y")
            assert broker.messages == [("t", "y", False)]


# --- the mirror ---
@dataclass(frozen=True)
class Row:
    number: int
    topic: str = "t"
    project: str = "p"
    retained: bool = False

    @property
    def payload(self) -> str:
        return str(self.number)


class Outbox:
    def __init__(self, count) -> None:
        self.rows = [Row(number) for number in range(count)]

    def outbox_next(self, limit):
        return self.rows[:limit]

    def outbox_done(self, number) -> None:
        self.rows = [row for row in self.rows if row.number != number]

    def outbox_trim(self, limit) -> int:
        dropped = max(0, len(self.rows) - limit)
        self.rows = self.rows[dropped:]
        return dropped


def test_the_mirror_sends_everything_in_order_through_every_outage(monkeypatch, caplog):
    monkeypatch.setattr(mirror_module, "FIRST", 0.01)
    monkeypatch.setattr(mirror_module, "LONGEST", 0.05)
    outbox = Outbox(250)
    troubles = iter([None, BREAK, FORGET, None, None, FORGET, SILENT, BREAK] * 2)
    with (
        Broker(script=lambda nth: next(troubles, None)) as broker,
        caplog.at_level(logging.INFO, "flops.service.mirror"),
    ):
        mirror = Mirror(outbox, Publisher(broker.address, seconds=0.3))
        mirror.start()
        wait_until(lambda: not outbox.rows, 60)
        mirror.close()
    told = [int(text) for _, text, _ in broker.messages]
    assert sorted(set(told)) == list(range(250))
    assert told == sorted(told)  # doubled at most, never out of order
    assert "takes messages again" in caplog.text


def test_the_mirror_of_a_broker_that_is_away_keeps_everything_and_ends_when_asked(caplog):
    outbox = Outbox(3)
    mirror = Mirror(outbox, Publisher(BrokerAddress(host="127.0.0.1", port=unused_port()), seconds=0.3))
    with caplog.at_level(logging.WARNING, "flops.service.mirror"):
        mirror.start()
        wait_until(lambda: not mirror.connected)
        mirror.close()
    assert len(outbox.rows) == 3
    assert len(caplog.records) == 1


def test_what_is_beyond_the_bound_is_dropped_counted_and_told_once_for_each_outage(monkeypatch, caplog):
    monkeypatch.setattr(mirror_module, "FIRST", 0.01)
    monkeypatch.setattr(mirror_module, "LONGEST", 0.01)
    outbox, dropped = Outbox(5), []
    with Broker() as broker, caplog.at_level(logging.WARNING, "flops.service.mirror"):
        away = BrokerAddress(host="127.0.0.1", port=unused_port())
        publisher = Publisher(away, seconds=0.3)
        mirror = Mirror(outbox, publisher, backlog=3, dropped=dropped.append)
        mirror.start()
        wait_until(lambda: not mirror.connected)
        outbox.rows = [*outbox.rows, Row(5), Row(6)]
        wait_until(lambda: sum(dropped) == 4)
        told = [record.getMessage() for record in caplog.records if "wait for the broker" in record.getMessage()]
        assert told == [
            f"more than 3 messages wait for the broker at {away}: those of the oldest projects are dropped, save outcomes"
        ]
        publisher.address = broker.address
        wait_until(lambda: not outbox.rows)
        mirror.close()
    assert [text for _, text, _ in broker.messages] == ["4", "5", "6"]


# --- what a builder tells FLOps itself ---
@pytest.fixture
def observer():
    received: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, connection.makefile("rb") as stream:
                    received.append(stream.read().decode())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname(), received
        server.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=10)


def test_texts_and_messages_keep_their_order_and_the_outcome_comes_last(observer):
    where, received = observer
    with Broker() as broker, Announcer(broker=broker.address, observer=where) as announcer:
        announcer.manager("started", {"flops_project_id": "p"})
        for number in range(5):
            announcer.observer(f"text {number}")
        assert announcer.outcome("success", {"flops_project_id": "p", "a": "b"})
        assert [(topic, json.loads(text)) for topic, text, _ in broker.messages] == [
            ("started", {"flops_project_id": "p"}),
            ("success", {"flops_project_id": "p", "a": "b"}),
        ]
        wait_until(lambda: len(received) == 5)
    assert received == [f"text {number}" for number in range(5)]


def test_a_broker_that_breaks_gets_the_outcome_all_the_same(monkeypatch):
    monkeypatch.setattr(announcer_module, "PAUSE", 0.01)
    troubles = iter([BREAK, FORGET, BREAK])
    with (
        Broker(script=lambda nth: next(troubles, None)) as broker,
        Announcer(broker=broker.address, observer=None) as announcer,
    ):
        announcer.manager("started", {})
        assert announcer.outcome("failed", {})
        assert [topic for topic, _, _ in broker.messages] == ["started", "started", "failed"]


def test_nobody_there_delays_no_message_and_is_told_as_such(monkeypatch):
    monkeypatch.setattr(announcer_module, "OUTCOME_SECONDS", 0.3)
    gone = BrokerAddress(host="127.0.0.1", port=unused_port())
    with Announcer(broker=gone, observer=("127.0.0.1", unused_port())) as announcer:
        for number in range(50):
            announcer.observer(f"text {number}")
            announcer.manager("topic", {})
        assert not announcer.outcome("failed", {})


def test_without_addresses_nobody_waits():
    with Announcer(broker=None, observer=None) as announcer:
        announcer.observer("text")
        announcer.manager("topic", {})
        assert announcer.outcome("failed", {})
