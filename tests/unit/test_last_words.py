"""What the message of a failed federation keeps of an actor's output."""

import pytest

from flops.cli.containers import ERROR_LINES, LAST_LINES, LastWords

TIME = "2026-01-02 03:04:05,678"


def heard(*lines):
    words = LastWords()
    for line in lines:
        words.hear(line)
    return str(words).split("\n")


@pytest.mark.parametrize("count", [1, LAST_LINES, LAST_LINES + 1, 100])
def test_without_an_error_the_end_is_kept(count):
    lines = [f"line {i}" for i in range(count)]
    assert heard(*lines) == lines[-LAST_LINES:]


def test_an_error_is_kept_from_its_first_line_on():
    traceback = ["Traceback:", *(f"frame {i}" for i in range(40)), "ValueError: no"]
    assert heard(f"{TIME} INFO starts", *("noise",) * 99, f"{TIME} ERROR it failed", *traceback) == [
        "it failed",
        *traceback,
    ]


def test_the_last_error_counts():
    assert heard(f"{TIME} ERROR first", "more", *("noise",) * 99, f"{TIME} ERROR second", "why") == ["second", "why"]


def test_a_long_error_keeps_its_start_and_the_end():
    lines = [f"line {i}" for i in range(200)]
    kept = ERROR_LINES - 1
    assert heard(f"{TIME} ERROR it failed", *lines) == [
        "it failed",
        *lines[:kept],
        f"... {200 - kept - LAST_LINES} lines ...",
        *lines[-LAST_LINES:],
    ]


def test_a_longer_error_without_a_gap_says_nothing_of_one():
    lines = [f"line {i}" for i in range(ERROR_LINES + 3)]
    assert heard(f"{TIME} ERROR it failed", *lines) == ["it failed", *lines]


def test_words_about_errors_are_no_error():
    assert heard("an ERROR is told", f"2026-01-02T03:04:05Z ERROR {TIME}") == [
        "an ERROR is told",
        f"2026-01-02T03:04:05Z ERROR {TIME}",
    ]
