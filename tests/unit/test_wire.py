"""Frames between an actor and its worker, and the texts that FLOps' own components read."""

import ast
import contextlib
import json
import math
import socket
import struct
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flops_wire import events, flops, frames, rounds

SOURCE = Path(__file__).parents[2] / "src"
DTYPES = ("|b1", "|i1", "|u1", "<i2", ">i4", "<i8", "<u2", ">u8", "<f2", "<f4", ">f8", "<f8", "<c8", ">c16")
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


def exchange(header, arrays=()):
    """What the other side receives."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=frames.send, args=(ours, header, arrays))
        thread.start()
        received = frames.receive(theirs)
        thread.join()
        return received


def receive(data):
    ours, theirs = socket.socketpair()

    def send():
        with ours, contextlib.suppress(ConnectionError):  # the other side may refuse before it has read everything
            ours.sendall(data)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        with theirs:
            return frames.receive(theirs)
    finally:
        thread.join()


def framed(header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack(">I", len(text)) + text


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), shapes, st.sampled_from("CF"), st.integers(0, 2**32 - 1)), max_size=4)
)
def test_arrays_arrive_as_they_were_sent(described):
    arrays = []
    for dtype, shape, order, seed in described:
        data = np.random.default_rng(seed).bytes(math.prod(shape) * np.dtype(dtype).itemsize)
        array = np.frombuffer(data, dtype="|u1").view(dtype) if dtype != "|b1" else np.frombuffer(data, "|u1") % 2 == 0
        arrays.append(np.asarray(array.reshape(shape), order=order))
    received = exchange({"call": "x"}, [frames.pack(array) for array in arrays])
    assert received.header == {"call": "x"}
    for sent, got in zip(arrays, received.arrays, strict=True):
        back = np.frombuffer(got.data, dtype=got.dtype).reshape(got.shape)
        assert (back.dtype, back.shape) == (sent.dtype, sent.shape)
        assert back.tobytes() == sent.tobytes(order="C")
        assert back.flags.writeable


def test_a_frame_takes_memory_for_what_comes_and_not_for_what_it_claims():
    tracemalloc.start()
    try:
        with pytest.raises(frames.Disconnected):
            receive(framed({"arrays": [{"dtype": "|u1", "shape": [1 << 30]}]}) + b"12345678")
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024**2
    finally:
        tracemalloc.stop()


def test_an_array_of_several_pieces_arrives(monkeypatch):
    monkeypatch.setattr(frames, "PIECE", 1000)
    data = bytes(range(250)) * 21
    assert exchange({}, [frames.Array("|u1", (len(data),), data)]).arrays[0].data == data


def test_a_view_with_strides_travels_in_c_order():
    array = np.arange(24, dtype="<f4").reshape(4, 6)[::2, ::-1].T
    got = exchange({}, [frames.pack(array)]).arrays[0]
    assert np.array_equal(np.frombuffer(got.data, got.dtype).reshape(got.shape), array)


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}], dtype=object),
        np.array(["a"]),
        np.array([b"a"]),
        np.zeros(2, dtype=[("a", "<f4")]),
        np.zeros(2, dtype="<M8[s]"),
        np.zeros(2, dtype=np.longdouble),
    ],
    ids=["object", "text", "bytes", "structured", "time", "longdouble"],
)
def test_what_is_no_array_of_numbers_does_not_travel(array):
    with pytest.raises(frames.FrameError, match="can't travel"):
        frames.pack(array)


@pytest.mark.parametrize(
    "dtype", ["|O", "<f8 ", "<f08", "f8", "=f8", "|f8", "<f3", "<f-8", "<V8", "", "<f\u0668", "<b1"]
)
def test_a_dtype_from_the_other_side_is_checked(dtype):
    with pytest.raises(frames.FrameError, match="can't travel"):
        receive(framed({"arrays": [{"dtype": dtype, "shape": [1]}]}) + b"12345678")


@pytest.mark.parametrize(
    "data",
    [
        framed(b"{"),
        framed(b"[]"),
        framed(b"1"),
        framed(b"\xff\xfe"),
        framed({}),
        framed({"arrays": 3}),
        framed({"arrays": [{"dtype": "<f8"}]}),
        framed({"arrays": [{"dtype": "<f8", "shape": [-1]}]}),
        framed({"arrays": [{"dtype": "<f8", "shape": [1.5]}]}),
        framed({"arrays": [{"dtype": "<f8", "shape": [True]}]}),
        framed({"arrays": [{"dtype": "<f8", "shape": [1] * 33}]}),
        framed({"arrays": [{"dtype": "<f8", "shape": [2**40]}]}),
        framed({"arrays": [{"dtype": 8, "shape": [1]}]}),
        framed({"arrays": [{"dtype": "|b1", "shape": []}] * 100_001}),
        framed(b"[" * 100_000),
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
    ],
)
def test_what_is_no_frame_is_refused(data):
    with pytest.raises(frames.FrameError) as caught:
        receive(data)
    assert not isinstance(caught.value, frames.Disconnected)


@pytest.mark.parametrize(
    ("data", "clean"),
    [
        (b"", True),
        (b"\0\0", False),
        (framed({"arrays": []})[:-1], False),
        (framed({"arrays": [{"dtype": "<f8", "shape": [2]}]}) + b"1234", False),
    ],
    ids=["between frames", "in the length", "in the header", "in an array"],
)
def test_the_end_of_the_stream_is_told_apart(data, clean):
    with pytest.raises(frames.Disconnected) as caught:
        receive(data)
    assert caught.value.clean is clean


def test_a_frame_that_would_break_a_limit_is_not_sent():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(frames.FrameError, match="bytes of header"):
            frames.send(ours, {"text": "x" * (frames.HEADER_LIMIT + 1)})
        with pytest.raises(frames.FrameError, match="are no <f8 array"):
            frames.send(ours, {}, [frames.Array("<f8", (2,), b"12345678")])
        with pytest.raises(frames.FrameError, match="'arrays' itself"):
            frames.send(ours, {"arrays": []})
        ours.setblocking(False)
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


floats = st.floats(allow_nan=False)


@given(st.integers(1, 9999), floats, floats, st.integers(0, 2**53), st.integers(0, 2**53), st.integers(1, 10**6))
def test_a_round_is_read_as_it_was_written(number, loss, accuracy, trained, evaluated, learners):
    told = rounds.Round(number, 9999, loss, accuracy, trained, evaluated, learners)
    assert rounds.parse(told.line() + "\n") == told


def test_a_round_s_line_is_stable():
    told = rounds.Round(1, 3, 0.1 + 0.2, float("nan"), 1437, 360, 2)
    assert told.line() == "round 1/3: loss=0.30000000000000004 accuracy=nan trained=1437 evaluated=360 learners=2"
    assert math.isnan(rounds.parse(told.line()).accuracy)


@pytest.mark.parametrize(
    "line", ["", "round", "round 1/3: loss=x accuracy=1.0 trained=1 evaluated=1 learners=1", "INFO x"]
)
def test_other_lines_are_no_rounds(line):
    assert rounds.parse(line) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(252, "'4' minutes and 12 seconds"), (0.4, "0 seconds"), (59.6, "'1' minutes and 0 seconds")],
)
def test_durations_read_as_flops_writes_them(seconds, text):
    assert flops.duration(seconds) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ("", "", "added, any version"),
        ("", "<26", "added, <26"),
        ("==1", "", "==1 taken out"),
        ("==1", "==2", "==1 -> ==2"),
    ],
)
def test_changes_read_as_what_they_are(before, after, text):
    assert flops.change(before, after) == text


def test_topics_are_flops_s_own():
    assert flops.BUILDER_FAILED == "flops_manager/fl_actors_image_builder/failed"
    assert flops.AGGREGATOR_SUCCESS == "flops_manager/aggregator/success"
    assert flops.LEARNER_FAILED == "flops_manager/learner/failed"
    assert flops.observer_topic("p1") == "project_observer/p1"


def test_the_aggregator_s_success_is_valid_json_whatever_the_metrics():
    told = flops.aggregator_success("p", aggregator_type="CLASSIC_AGGREGATOR", accuracy=0.5, loss=float("nan"))
    assert json.loads(json.dumps(told, allow_nan=False)) == {
        "flops_project_id": "p",
        "aggregator_type": "CLASSIC_AGGREGATOR",
        "accuracy": 0.5,
        "loss": None,
        "experiment_id": "",
        "run_id": "",
    }


def test_terminal_kinds_are_kinds():
    assert set(events.TERMINAL_KINDS) < set(events.KINDS)


@pytest.mark.parametrize("path", [*SOURCE.glob("flops_wire/**/*.py"), *SOURCE.glob("flops_worker/**/*.py")], ids=str)
def test_what_the_user_s_environment_imports_is_python_3_9(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    assert any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in tree.body) or not any(
        isinstance(n, ast.FunctionDef) for n in ast.walk(tree)
    )
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    assert not [k.arg for n in calls for k in n.keywords if k.arg in ("kw_only", "slots")], "3.10"


def test_the_wire_imports_the_standard_library_only():
    import sys

    for path in SOURCE.glob("flops_wire/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names) | {"flops_wire"}
