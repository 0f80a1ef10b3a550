"""The command line as a whole: which commands there are, and that each imports only what it needs."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flops.cli.main import COMMANDS, GROUPS, main


def test_help_lists_every_command(capsys):
    assert main([]) == 0
    assert main(["--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    listed = [words[0] for words in lines if words and words[0] in COMMANDS]
    assert sorted(listed) == sorted([*COMMANDS, *COMMANDS])


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"flops {name}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["chekc"], ["check"], ["check", "--nothing"], ["--nothing", "check"]])
def test_words_that_are_none_are_told(words, capsys):
    assert main(words) == 2
    assert "error[USAGE]" in capsys.readouterr().err


def test_a_check_imports_nothing_that_only_builds_or_talks():
    program = (
        "import sys\n"
        "from flops.cli.main import main\n"
        "main(['check', '--help'])\n"
        "slow = {'httpx', 'starlette', 'uvicorn', 'flops.cli.build', 'flops.oci.client', 'flops.use_cases.build'}\n"
        "sys.exit(' '.join(sorted(slow & sys.modules.keys())) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_a_group_without_a_command_shows_its_help(group, capsys):
    assert main([group]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: flops {group} ")
    assert all(f"\n  {name} " in out for name in GROUPS[group][1])
    assert err == ""


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--version"], 6, "error[OUTPUT]: can't write to standard output: "),
        (["check", "--help"], 6, "error[OUTPUT]: can't write to standard output: "),
        (["check", "nowhere", "--json"], 3, "error[BAD_URL]: "),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_full_disk_behind_stdout_is_no_bug_of_ours(words, code, told, unbuffered):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "flops.cli.main", *words],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == code
    assert done.stderr.startswith(told)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_table_that_can_not_be_written_is_told(monkeypatch, capsys):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    assert main([]) == 6
    assert "error[OUTPUT]: can't write to standard output: No space left on device" in capsys.readouterr().err
