"""Findings carry the line that they are about, and nothing that must not be shown."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flops.errors import Finding, StructureError
from flops.progress import Silent
from flops.repository.source_lines import LINE_LIMIT, SourceLineReporter, line_of, source_lines, with_source_lines


def finding(path="requirements.txt", line=2):
    return Finding(path=path, line=line, code="X", message="m")


@pytest.fixture
def root(tmp_path):
    place = tmp_path / "repository"
    place.mkdir()
    (place / "requirements.txt").write_text("numpy==1\n  scipy==2  # why\n" + "x" * 500 + "\n")
    return place


def test_the_line_is_quoted_and_is_part_of_the_json_only_where_there_is_one(root):
    assert with_source_lines(finding(), root).to_json()["quote"] == "scipy==2  # why"
    assert "quote" not in with_source_lines(finding(line=0), root).to_json()
    assert "quote" not in with_source_lines(finding(line=99), root).to_json()
    assert "quote" not in with_source_lines(finding(path="no.txt"), root).to_json()


def test_a_long_line_is_cut(root):
    assert with_source_lines(finding(line=3), root).quote == "x" * LINE_LIMIT + "..."


@pytest.mark.parametrize(
    "line",
    ["API_KEY = 'abc'", "password: hunter2", "--extra-index-url https://h/simple?token=abc", "AUTH='x'", "MY_SECRET=1"],
)
def test_a_line_that_may_hold_a_secret_is_not_shown(root, line):
    (root / "requirements.txt").write_text(f"a\n{line}\n")
    assert with_source_lines(finding(), root).quote == ""


def test_user_names_in_urls_are_left_out(root):
    (root / "requirements.txt").write_text("a\n--index-url https://me:sesame@host/x\n")
    assert with_source_lines(finding(), root).quote == "--index-url https://host/x"


@pytest.mark.parametrize("path", ["../outside.txt", "link.txt", "pipe", "/etc/hostname", "", "\0"])
def test_nothing_outside_the_checkout_is_read(root, path):
    (root.parent / "outside.txt").write_text("first\nsecond\n")
    (root / "link.txt").symlink_to(root.parent / "outside.txt")
    os.mkfifo(root / "pipe")
    assert with_source_lines(finding(path=path), root).quote == ""


@given(st.binary(max_size=400), st.integers(1, 20))
def test_any_bytes_are_read_without_failing(tmp_path_factory, data, number):
    root = tmp_path_factory.mktemp("r")
    (root / "f").write_bytes(data)
    assert len(line_of(root, "f", number)) <= LINE_LIMIT + 3


def test_errors_and_notes_leave_with_their_lines(root):
    with pytest.raises(StructureError) as failed, source_lines(root):
        raise StructureError("m", findings=[finding()])
    assert failed.value.findings[0].quote == "scipy==2  # why"
    told = []

    class Ear(Silent):
        def finding(self, finding):
            told.append(finding)

    SourceLineReporter(Ear(), root).finding(finding())
    assert told[0].quote == "scipy==2  # why"
