"""FLOps' messages from an actor: what is sent, and that their failure fails nothing."""

import logging
import socket
import threading
import time

import pytest
from tests.ports import unused_port

from flops_actor import notify
from flops_actor.arguments import Endpoint


@pytest.fixture
def observer():
    """A server that keeps what each connection sent."""
    received = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)

        def serve():
            try:
                while True:
                    connection, _ = server.accept()
                    with connection, connection.makefile("rb") as stream:
                        received.append(stream.read())
            except OSError:
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Endpoint(host="127.0.0.1", port=server.getsockname()[1]), received
        server.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=10)


def unused():
    return Endpoint(host="127.0.0.1", port=unused_port())


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)


def test_the_observer_gets_one_connection_for_each_text_in_order(observer):
    where, received = observer
    with notify.Notifier(broker=None, observer=where) as notifier:
        notifier.observer("Aggregator started")
        notifier.observer("zweite Zeile: ü")
    wait_until(lambda: len(received) == 2)
    assert received == [b"Aggregator started", "zweite Zeile: ü".encode()]


def test_a_long_text_is_sent_whole_up_to_the_limit(observer):
    where, received = observer
    with notify.Notifier(broker=None, observer=where) as notifier:
        notifier.observer("x" * 5000)
        notifier.observer("y" * 20_000)
    wait_until(lambda: len(received) == 2)
    assert [len(text) for text in received] == [5000, notify.TEXT_LIMIT]


def test_nobody_there_is_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(notify.log, "propagate", True)
    with (
        caplog.at_level(logging.WARNING, logger="flops.actor"),
        notify.Notifier(broker=unused(), observer=unused()) as n,
    ):
        n.manager("flops_manager/learner/failed", {"flops_project_id": "p"})
        n.observer("text")
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "the manager at 127.0.0.1" in caplog.text
    assert "the observer at 127.0.0.1" in caplog.text


def test_without_addresses_nothing_is_sent():
    with notify.Notifier(broker=None, observer=None) as notifier:
        notifier.manager("topic", {})
        notifier.observer("text")


def test_an_actor_that_is_being_stopped_does_not_wait(monkeypatch):
    class Stopped(BaseException):
        pass

    def stopped():
        with notify.Notifier(broker=None, observer=unused()) as notifier:
            notifier.observer("text")
            raise Stopped

    release = threading.Event()
    monkeypatch.setattr(notify, "_send", lambda where, text: release.wait(30))
    begin = time.monotonic()
    with pytest.raises(Stopped):
        stopped()
    assert time.monotonic() - begin < 20
    release.set()
