"""The database: one file, transactions, what it refuses, what it keeps and what it forgets."""

import contextlib
import os
import sqlite3
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from flops.errors import DiskFull, StoreError
from flops.service.project import Attempt, BuilderState, Project, State
from flops.service.schema import MIGRATIONS, VERSION
from flops.service.store import Store, WriterQueue
from flops.service.tables import attempt_row, project_row
from flops_wire.events import event


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "manager.db") as store:
        yield store


def a_project(number=1, **more):
    given = {
        "id": f"{number:024x}",
        "repository": "https://git.example.com/acme/digits",
        "recipe": "sha256:1",
        "platforms": ("linux/amd64", "linux/arm64"),
        "sla": {"verbose": True, "ml_repo_url": "ü"},
        "created": 10.5,
        "warnings": ("one",),
    }
    return Project(**{**given, **more})


def insert(store, *projects):
    with store.write() as tables:
        for project in projects:
            tables.insert(project)


def test_a_project_comes_back_as_it_was(store):
    project = a_project(
        ref="main", subdir="a/b", commit="c" * 40, force=True, leader="x", attempt=2, tagging=True, started=11.0,
        error={"code": "X"}, result={"images": {}}, state=State.FAILED, builder=BuilderState.REMOVING, ended=12.25,
    )  # fmt: skip
    insert(store, project)
    with store.read() as tables:
        assert tables.project(project.id) == project
    changed = replace(a_project(), state=State.BUILDING, builder=BuilderState.RUNNING, commit="d" * 40)
    with store.write() as tables:
        tables.save(changed)
    with store.read() as tables:
        found = tables.project(project.id)
    assert (found.state, found.builder, found.commit) == (State.BUILDING, BuilderState.RUNNING, "d" * 40)
    assert found.ref == "main", "what was asked for does not change"


def test_attempts_come_back_and_are_unique_by_job(store):
    insert(store, a_project())
    one = Attempt(project=a_project().id, number=1, job="job1", tokens=("t",), created=1.0)
    with store.write() as tables:
        tables.add_attempt(one)
        tables.save_attempt(replace(one, handle={"pid": 7}, closed=True, logs="words", move={"tags": ["t"]}))
    with store.read() as tables:
        assert tables.attempts(one.project) == [
            replace(one, handle={"pid": 7}, closed=True, logs="words", move={"tags": ["t"]})
        ]
        assert tables.attempt(one.project, 2) is None
        assert tables.attempt(one.project, 2**70) is None
        assert tables.attempt("\ud800", 1) is None
        assert tables.project("\ud800") is None
    assert "words" not in repr(replace(one, tokens=("secret",))), "a token's hash is not shown"
    with pytest.raises(StoreError), store.write() as tables:
        tables.add_attempt(replace(one, number=2))


def test_events_are_stored_once_in_order_and_per_project(store):
    insert(store, a_project(1), a_project(2))
    one, two = event("queue", "started", "a"), event("clone", "started", "b")
    with store.write() as tables:
        assert [tables.add_event(a_project(1).id, each) for each in (one, two, one)] == [1, 2, None]
        assert tables.add_event(a_project(2).id, one) > 2
    with store.read() as tables:
        assert [each["sequence"] for each in tables.events(a_project(1).id, after=0, limit=9)] == [1, 2]
        assert [each["message"] for each in tables.events(a_project(1).id, after=1, limit=9)] == ["b"]
        assert tables.events(a_project(1).id, after=2**80, limit=9) == []
        assert tables.events_beside(a_project(1).id) == 2
        assert tables.has_events(a_project(1).id, [one["id"]])
        assert not tables.has_events(a_project(1).id, [one["id"], "other"])


def test_what_is_raised_in_a_transaction_undoes_it(store):
    called = []

    def interrupted():
        with store.write() as tables:
            tables.insert(a_project())
            store.afterwards(lambda: called.append(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    with store.read() as tables:
        assert tables.project(a_project().id) is None
    with store.write():
        pass
    assert called == []


def test_it_is_told_after_the_commit_and_in_its_order(store):
    seen = []

    def put(number):
        with store.write() as tables:
            tables.insert(a_project(number))
            store.afterwards(lambda: seen.append((number, number_of_projects(store))))

    threads = [threading.Thread(target=put, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in seen) == list(range(20))
    assert all(count > place for place, (_, count) in enumerate(seen)), "each was there when it was told"
    assert number_of_projects(store) == 20


def together(store, count, work):
    """Writers that all want their turn while another one has it, so that they are committed together."""
    errors = {}

    def write(number):
        try:
            with store.write() as tables:
                work(tables, number)
        except Exception as error:  # noqa: BLE001
            errors[number] = error

    with contextlib.suppress(DiskFull), store.write():
        threads = [threading.Thread(target=write, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        while store._turns.waiting < count:
            time.sleep(0.001)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return errors


def test_who_fails_among_others_fails_alone(store):
    def work(tables, number):
        tables.insert(a_project(number))
        if number % 3 == 0:
            raise ZeroDivisionError

    errors = together(store, 40, work)
    assert {number for number in errors if isinstance(errors[number], ZeroDivisionError)} == set(range(0, 40, 3))
    assert len(errors) == 14
    with store.read() as tables:
        for number in range(40):
            assert (tables.project(a_project(number).id) is not None) == (number % 3 != 0)


def test_a_full_disk_is_told_to_everybody_whom_it_concerns(store):
    insert(store, a_project(100))
    connection = store._writer
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 3}")
    errors = together(store, 20, lambda tables, number: tables.insert(a_project(number, sla={"x": "y" * 3000})))
    with store.read() as tables:
        there = {number for number in range(20) if tables.project(a_project(number).id)}
    assert errors
    assert all(isinstance(error, DiskFull) for error in errors.values())
    assert there == set(range(20)) - set(errors), "who was told nothing is on the disk, and nobody else"
    connection.execute("PRAGMA max_page_count = 1000000")
    assert together(store, 5, lambda tables, number: tables.insert(a_project(200 + number))) == {}


def test_closing_commits_what_was_left_to_it(store):
    results = []

    def write():
        with store.write() as tables:
            entered.set()
            leave.wait(30)
            tables.insert(a_project())
        results.append("committed")

    entered, leave = threading.Event(), threading.Event()
    writer, closer = threading.Thread(target=write), threading.Thread(target=store.close)
    writer.start()
    entered.wait(30)
    closer.start()
    while not store._turns.waiting:
        time.sleep(0.001)
    leave.set()
    for thread in (writer, closer):
        thread.join(30)
    assert results == ["committed"]
    store.open()
    assert number_of_projects(store) == 1


def number_of_projects(store):
    with store.read() as tables:
        return tables.page(limit=1, offset=0, state=None)[1]


def test_readers_do_not_wait_for_a_writer(store):
    insert(store, a_project())
    with store.write() as tables:
        tables.save(replace(a_project(), state=State.FAILED))
        result = []
        reader = threading.Thread(target=lambda: result.append(number_of_projects(store)))
        reader.start()
        reader.join(10)
        assert result == [1]


def test_a_full_disk_is_told_and_survived(store):
    insert(store, a_project(1))
    connection = store._writer
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFull):
        insert(store, *(a_project(number, sla={"x": "y" * 2000}) for number in range(2, 500)))
    connection.execute("PRAGMA max_page_count = 1000000")
    insert(store, a_project(600))
    assert number_of_projects(store) == 2


def test_what_was_committed_is_in_a_copy_of_the_files(store, tmp_path):
    insert(store, a_project())
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in os.listdir(tmp_path):
        if name.startswith("manager.db"):
            (copy / name).write_bytes((tmp_path / name).read_bytes())
    with Store(copy / "manager.db") as again:
        assert number_of_projects(again) == 1


def test_it_is_nobody_elses_to_read(store):
    assert store.path.stat().st_mode & 0o077 == 0


def test_a_file_that_is_none_is_told(tmp_path):
    (tmp_path / "db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError):
        Store(tmp_path / "db").open()
    with pytest.raises(StoreError):
        Store(tmp_path / "db" / "below").open()


@pytest.mark.parametrize("version", range(1, VERSION))
def test_one_of_an_older_version_is_brought_up_to_date_with_all_that_is_in_it(tmp_path, version):
    connection = sqlite3.connect(tmp_path / "db", isolation_level=None)
    for statement in (one for statements in MIGRATIONS[:version] for one in statements):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {version}")
    project, attempt = a_project(), Attempt(project=a_project().id, number=1, job="job1", tokens=("t",), created=1.0)
    rows = {"projects": project_row(project), "attempts": attempt_row(attempt)}
    for table, row in rows.items():
        known = {name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")}
        kept = {name: value for name, value in row.items() if name in known}
        marks = ", ".join(f":{name}" for name in kept)
        connection.execute(f"INSERT INTO {table} ({', '.join(kept)}) VALUES ({marks})", kept)
    connection.close()
    with Store(tmp_path / "db") as store:
        with store.read() as tables:
            assert (tables.project(project.id), tables.attempt(project.id, 1)) == (project, attempt)
        with store.write() as tables:
            tables.save_attempt(replace(attempt, move={"images": {}}))
            tables.add_attempt(replace(attempt, number=2, job="job2"))
        with store.read() as tables:
            assert [one.move for one in tables.attempts(project.id)] == [{"images": {}}, None]


def test_one_of_a_newer_version_is_left_alone(tmp_path):
    Store(tmp_path / "db").open().close()
    connection = sqlite3.connect(tmp_path / "db")
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    with pytest.raises(StoreError, match="newer"):
        Store(tmp_path / "db").open()


def test_after_closing_it_answers_at_once(store):
    store.close()
    with pytest.raises(StoreError), store.read():
        pass
    with pytest.raises(StoreError), store.write():
        pass


def test_the_prefix_is_made_once(store, tmp_path):
    prefix = store.prefix()
    assert len(prefix) == 6
    assert int(prefix, 16) >= 0
    store.close()
    assert store.open().prefix() == prefix
    with Store(tmp_path / "other.db") as other:
        assert other.prefix() != prefix


def test_the_outbox_keeps_its_order_until_it_is_acknowledged(store):
    with store.write() as tables:
        for number in range(5):
            tables.put_out("p", f"topic/{number}", "{}", retained=number % 2 == 0)
    rows = store.outbox_next(3)
    assert [row.topic for row in rows] == ["topic/0", "topic/1", "topic/2"]
    assert [row.retained for row in rows] == [True, False, True]
    store.outbox_done(rows[0].number)
    assert [row.topic for row in store.outbox_next(9)] == ["topic/1", "topic/2", "topic/3", "topic/4"]
    assert store.outbox_count() == 4


def waiting(store):
    return [(row.project, row.payload) for row in store.outbox_next(99)]


def test_an_outbox_beyond_its_bound_loses_whole_projects_the_oldest_first_and_no_outcome_of_one_that_is_there(store):
    one, two, three, gone = (f"{number:024x}" for number in range(1, 5))
    insert(store, *map(a_project, (1, 2, 3)))
    with store.write() as tables:
        for project, texts in ((gone, "ab!"), (one, "abc"), (two, "ab"), (one, "d!"), (three, "ab!")):
            for text in texts:
                tables.put_out(project, "topic", text, retained=False, terminal=text == "!")
    everything = waiting(store)
    assert store.outbox_trim(13) == 0
    assert waiting(store) == everything
    assert store.outbox_trim(12) == 2  # the two of the oldest project
    assert waiting(store) == [each for each in everything if each not in {(gone, "a"), (gone, "b")}]
    assert store.outbox_trim(8) == 4  # one more would do; it is the whole of the next project
    assert waiting(store) == [(gone, "!"), (two, "a"), (two, "b"), (one, "!"), (three, "a"), (three, "b"), (three, "!")]
    assert store.outbox_trim(1) == 5  # all on the way, and the outcome of a project that nobody knows any more
    assert waiting(store) == [(one, "!"), (three, "!")]
    assert store.outbox_trim(1) == 0
    with store.write() as tables:
        tables.forget(before=0.0, beyond=0, limit=9)  # none has ended: none is forgotten
    assert store.outbox_trim(1) == 0
    assert store.outbox_count() == 2


def ended(number, at, builder=BuilderState.REMOVED):
    return a_project(number, state=State.FAILED, builder=builder, ended=float(at))


def test_old_projects_are_forgotten_with_all_that_belongs_to_them_but_never_their_builders(store):
    insert(store, ended(1, 5), ended(2, 5, BuilderState.REMOVING), ended(3, 50), a_project(4))
    with store.write() as tables:
        tables.add_event(a_project(1).id, event("queue", "started", "x"))
        tables.add_key("key", "digest", a_project(1).id)
        tables.add_attempt(Attempt(project=a_project(1).id, number=1, job="j", created=1.0))
        assert tables.forget(before=10, beyond=100, limit=100) == 1
    with store.read() as tables:
        assert [tables.project(a_project(number).id) is not None for number in (1, 2, 3, 4)] == [
            False,
            True,
            True,
            True,
        ]
        assert tables.keyed("key") is None
        assert tables.attempts(a_project(1).id) == []
        assert tables.events(a_project(1).id, after=0, limit=9) == []


def test_the_oldest_beyond_the_number_are_forgotten(store):
    insert(store, *(ended(number, number) for number in range(1, 11)))
    with store.write() as tables:
        assert tables.forget(before=0, beyond=4, limit=100) == 6
        assert tables.forget(before=0, beyond=4, limit=100) == 0
    with store.read() as tables:
        assert [one.ended for one in tables.page(limit=99, offset=0, state=None)[0]] == [10, 9, 8, 7]


def test_questions_use_indexes(store):
    """With ten thousand projects none of the questions of a pass may look at all of them."""
    plans = {
        "unresolved": "SELECT id FROM projects WHERE state = 'accepted' AND builder = 'none' AND leader IS NULL ORDER BY number LIMIT 9",
        "page": "SELECT number FROM projects WHERE state = 'failed' ORDER BY number DESC LIMIT 9 OFFSET 9",
        "queued": "SELECT id FROM projects WHERE builder = 'queued' ORDER BY number LIMIT 9",
        "deployed": "SELECT id FROM projects WHERE builder IN ('deploying', 'running', 'removing') ORDER BY number",
        "before": "SELECT count(*) FROM projects WHERE builder IN ('deploying', 'running', 'removing') OR (builder = 'queued' "
        "AND number < (SELECT number FROM projects WHERE id = 'x'))",
        "followers": "SELECT id FROM projects WHERE leader = 'x' ORDER BY number",
        "leader": "SELECT id FROM projects WHERE shared_key = 'x' AND id != 'y' AND leader IS NULL ORDER BY number LIMIT 1",
        "events": "SELECT body FROM events WHERE project = 'x' AND sequence > 3 ORDER BY sequence LIMIT 9",
    }
    for name, statement in plans.items():
        plan = " ".join(row[3] for row in store._writer.execute(f"EXPLAIN QUERY PLAN {statement}"))
        assert "USING INDEX" in plan or "USING COVERING INDEX" in plan, f"{name}: {plan}"
        assert "SCAN projects" not in plan, f"{name}: {plan}"
        assert "TEMP B-TREE" not in plan or name == "deployed", f"{name}: {plan}"  # those are as few as builders


def test_a_turn_that_is_interrupted_is_passed_on():
    left = []
    turns = WriterQueue(lambda: left.append(1))

    class Interrupted(threading.Event):
        def wait(self, timeout=None):
            if not left and not self.is_set() and not getattr(self, "once", False):
                self.once = True
                raise KeyboardInterrupt
            return super().wait(timeout)

    def interrupted():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("flops.service.store.threading", SimpleNamespace(Event=Interrupted, Lock=threading.Lock))
            with pytest.raises(KeyboardInterrupt):
                turns.__enter__()

    with turns:
        thread = threading.Thread(target=interrupted)
        thread.start()
        while not turns.waiting:
            time.sleep(0.001)
    thread.join(30)
    assert left == [1]
    with turns:
        assert turns.waiting == 0
