"""The command line as a whole: which commands there are, and that each imports only what it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flops.cli.main import COMMANDS, main


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
        "slow = {'httpx', 'starlette', 'uvicorn', 'flops.cli.build', 'flops.oci.client', 'flops.builder.build'}\n"
        "sys.exit(' '.join(sorted(slow & sys.modules.keys())) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
