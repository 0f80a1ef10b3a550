"""Connections that ask for nothing: how long they may stay, how many there may be, and who has room all the same."""

import contextlib
import json
import resource
import socket
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.orchestrators import World, failed, sla
from tests.web import Reader, serving

from flops import connections
from flops.connections import Room, address_of
from flops.registry.app import EmbeddedRegistry
from flops.service.access import Access
from flops.service.api import create_app
from flops.settings import Settings
from flops_wire.events import event
from flops_wire.manager import PROJECTS

TOKEN = "t0ken-of-the-operator-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
HEAD = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
MOST = 64


# --- the rule ---
class Guest:
    def __init__(self, address):
        self.address, self.busy, self.known, self.ended = address, False, False, False

    def end(self):
        self.ended = True


def entered(room, *addresses):
    guests = [Guest(address) for address in addresses]
    for guest in guests:
        room.enter(guest)
    return guests


def test_one_too_many_of_an_address_ends_that_address_longest_idle_one():
    room = Room(40)
    others = entered(room, *["b"] * 10)
    guests = entered(room, *["a"] * 10)
    room.turn(guests[0], busy=True)
    room.turn(guests[1], busy=True)
    room.turn(guests[1], busy=False)  # idle since now
    entered(room, "a", "a")
    assert [number for number, guest in enumerate(guests) if guest.ended] == [2, 3]
    assert not any(guest.ended for guest in others)


def test_an_address_whose_connections_are_all_busy_ends_its_longest_busy_one():
    room = Room(40)
    guests = entered(room, *["a"] * 10)
    for guest in reversed(guests):
        room.turn(guest, busy=True)
    entered(room, "a")
    assert [guest.ended for guest in guests] == [False] * 9 + [True]


def test_strangers_of_many_addresses_leave_a_quarter_to_those_who_are_known():
    room = Room(40)
    known = entered(room, *["k"] * 8)
    for guest in known:
        room.know(guest)
    entered(room, *(f"s{number}" for number in range(500)))
    assert room.taken == 38
    more = entered(room, *["k"] * 2)
    for guest in more:
        room.know(guest)
        assert not guest.ended
    assert not any(guest.ended for guest in known)


def test_who_is_known_and_idle_makes_room_where_no_stranger_is_left_to():
    room = Room(16)
    known = []
    for _ in range(16):
        known += entered(room, "k")
        room.know(known[-1])
        room.turn(known[-1], busy=True)
    (refused,) = entered(room, "k")
    assert refused.ended
    room.turn(known[5], busy=False)
    (taken,) = entered(room, "k")
    assert (taken.ended, known[5].ended) == (False, True)
    assert sum(guest.ended for guest in known) == 1


@given(
    st.lists(st.tuples(st.sampled_from(["enter", "leave", "busy", "idle", "know"]), st.integers(0, 30)), max_size=200)
)
def test_whatever_happens_nobody_is_counted_who_is_not_there(story):
    room, guests = Room(16), []
    for name, number in story:
        there = [guest for guest in guests if not guest.ended]
        guest = there[number % len(there)] if there else None
        match name:
            case "enter":
                guests += entered(room, f"a{number % 5}")
            case _ if guest is None:
                pass
            case "leave":
                guest.ended = True
                room.leave(guest)
            case "know":
                room.know(guest)
            case _:
                room.turn(guest, busy=name == "busy")
        there = [guest for guest in guests if not guest.ended]
        assert room.taken == len(there) <= 16
        strangers = [guest.address for guest in there if not guest.known]
        assert len(strangers) <= 12
        assert all(strangers.count(address) <= 4 for address in strangers)
    for guest in guests:
        room.leave(guest)
    assert (room.taken, room._by_address) == (0, {})


def test_a_line_a_minute_tells_of_it(caplog):
    now = [0.0]
    room = Room(16, clock=lambda: now[0])
    for _ in range(3):
        entered(room, *["a"] * 100)
        now[0] += 59
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "connections ended for lack of room: 1, the last from a",
        "connections ended for lack of room: 196, the last from a",
    ]


@pytest.mark.parametrize(("files", "share", "most"), [(65_536, 0.5, 8192), (1024, 0.5, 432), (1024, 0.125, 108), (64, 0.125, 16), (-1, 0.5, 8192)])  # fmt: skip
def test_how_many_follows_from_the_files_that_may_be_open(monkeypatch, files, share, most):
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (files, files))
    assert Room.of(share)._most == most


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_an_address_is_what_one_host_has(address, shown):
    assert address_of((address, 1)) == shown
    assert address_of(None) == "?"


# --- over sockets ---
@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "projects.sqlite3")
    yield world
    world.close()


@pytest.fixture
def app(world):
    return create_app(world.manager, Access.of(Settings(auth="token", api_token=TOKEN), "127.0.0.1"))


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)


@contextlib.contextmanager
def connected(url, count=1, source="127.0.0.1"):
    """Sockets that send nothing."""
    place = urlsplit(url)
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            one = socket.create_connection((place.hostname, place.port), timeout=20, source_address=(source, 0))
            made.append(stack.enter_context(contextlib.closing(one)))
        yield made


def closed(one):
    """Whether the server has ended it; waited for."""
    try:
        return one.recv(65536) == b""
    except ConnectionResetError:
        return True


def is_open(one):
    one.setblocking(False)
    try:
        return one.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
    finally:
        one.settimeout(20)


def ask(one, head):
    """The status of a request on this very connection."""
    one.sendall(head + b"\r\n")
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = one.recv(65536)
        assert piece, answer
        answer += piece
    length = next(int(line[15:]) for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    left = length - len(answer.partition(b"\r\n\r\n")[2])
    while left > 0:
        left -= len(one.recv(left))
    return int(answer[9:12])


@pytest.mark.parametrize(
    "sent", [b"", HEAD, b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\ntoken="]
)
def test_who_never_ends_a_request_is_ended(app, hasty, sent):
    with serving(app) as url, connected(url) as (one,):
        one.sendall(sent)
        assert closed(one)


def test_drops_give_a_head_no_more_time(app, hasty):
    with serving(app) as url, connected(url) as (one,):
        one.sendall(HEAD + b"X: ")
        one.settimeout(0.02)
        for _ in range(500):
            try:
                one.sendall(b"x")
                if closed(one):
                    return
            except TimeoutError:
                continue
            except OSError:  # ended between two of them
                return
        pytest.fail("it is still open")


def test_a_second_request_has_a_deadline_too_and_an_idle_connection_that_of_idle_ones(app, hasty):
    with serving(app) as url, connected(url, 3) as (first, second, measure):
        for one in (first, second):
            assert ask(one, HEAD) == 200
        first.sendall(HEAD)
        assert closed(first)
        assert closed(measure)
        assert is_open(second)
        assert ask(second, HEAD) == 200


def test_builders_and_viewers_have_time(app, world, monkeypatch):
    """A body that comes slowly, and a stream that says nothing, of those who were let in."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 2.0)
    project = world.submit()
    world.steps(4)
    token = world.orchestrator.job_of(project).deployment.token
    body = json.dumps({"events": [event("clone", "started", "slowly")]}).encode()
    head = (
        f"POST {PROJECTS}/{project.id}/attempts/1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Length: {len(body)}\r\n"
    )
    with serving(app) as url, httpx.Client(base_url=url, timeout=20, trust_env=False, headers=BEARER) as client:
        reader = Reader(client, f"{PROJECTS}/{project.id}/events")
        seen = len(reader.wait_for(2))
        with connected(url, 1) as (builder,):
            builder.sendall(head.encode() + b"\r\n" + body[:10])
            with connected(url) as (measure,):
                assert closed(measure)
            builder.sendall(body[10:])
            assert builder.recv(65536).startswith(b"HTTP/1.1 200 ")
        reader.wait_for(seen + 1)
        world.post(project, failed())
        world.settle()
        assert [one["event"] for one in reader.end()].count("failed") == 1


@pytest.mark.parametrize(
    "sources", [["127.0.0.1"], [f"127.0.0.{number}" for number in range(2, 14)]], ids=["one", "many"]
)
def test_three_hundred_idle_connections_leave_room(app, world, sources):
    """For probes, for whoever logs in, and for who has; those that are held are no more than there is room for."""
    room = Room(MOST)
    project = world.submit()
    world.steps(4)
    token = world.orchestrator.job_of(project).deployment.token
    own = HEAD.replace(b"/healthz", PROJECTS.encode()) + f"Authorization: Bearer {TOKEN}\r\n".encode()
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serving(app, room))
        (known,) = stack.enter_context(connected(url))
        assert ask(known, own) == 200
        silent = [one for source in sources for one in stack.enter_context(connected(url, 300 // len(sources), source))]
        assert len(silent) == 300
        client = stack.enter_context(httpx.Client(base_url=url, timeout=20, trust_env=False))
        for _ in range(3):
            assert client.get("/healthz").status_code == 200
            assert client.post(PROJECTS, json=sla(), headers=BEARER).status_code == 200
            job = f"{PROJECTS}/{project.id}/attempts/1/job"
            assert client.get(job, headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert ask(known, own) == 200, "on the same connection as before"
        assert room.taken <= MOST
        assert sum(is_open(one) for one in silent) <= MOST


def test_one_address_takes_no_room_from_another(app):
    with serving(app, Room(MOST)) as url, connected(url, 4, "127.0.0.2") as quiet, connected(url, 300) as loud:
        with connected(url) as (last,):
            assert ask(last, HEAD) == 200, "so all before it were accepted"
        assert all(map(is_open, quiet))
        assert ask(quiet[0], HEAD) == 200
        assert sum(map(is_open, loud)) <= MOST // 4


def test_the_embedded_registry_has_a_room_too(tmp_path, monkeypatch):
    monkeypatch.setattr(Room, "of", lambda _share: Room(MOST))
    with EmbeddedRegistry(tmp_path) as server, connected(server.registry.url, 300) as silent:
        assert httpx.get(f"{server.registry.url}/v2/", trust_env=False).status_code == 200
        assert sum(map(is_open, silent)) <= MOST // 4
