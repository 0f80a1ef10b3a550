"""A whole build without privileges and on a read-only system, of a repository full of code that wants to run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flops.platforms import Platform
from flops.settings import Settings

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "digits-sklearn"
#: Files that Python, pip, git or a build backend would run, each leaving a mark.
CANARIES = ("setup.py", "conftest.py", "sitecustomize.py", "usercustomize.py", "build_backend.py", "flops_wire.py")
ALLOWED = re.compile(
    r".*/bwrap|.*/python[0-9.]*|(?:/usr)?/(?:s?bin|lib/git-core)/git[a-z-]*|.*/bin/uv|/usr/(?:bin/(?:apt|dpkg)|lib/apt/).*"
    r"|.*/bases/interpreters/[0-9a-f]{64}/.*/ld-linux[a-z0-9-]*\.so\.[0-9]"
)


@pytest.fixture
def hostile(tmp_path):
    """The example with canaries; `marks` lists those that sang."""
    place = tmp_path / "hostile"
    shutil.copytree(EXAMPLE, place, ignore=shutil.ignore_patterns("data", "__pycache__"))
    marks = tmp_path / "marks"
    marks.mkdir()
    for name in CANARIES:
        (place / name).write_text(f"open({str(marks / name)!r}, 'w')\n")
    (place / "evil.pth").write_text(f"import os; open({str(marks / 'pth')!r}, 'w')\n")
    (place / ".gitattributes").write_text("* filter=evil\n")
    subprocess.run(["git", "init", "--quiet"], cwd=place, check=True, timeout=60)
    for key in ("core.fsmonitor", "core.sshCommand", "filter.evil.clean", "filter.evil.smudge", "core.pager"):
        subprocess.run(["git", "config", key, f"touch {marks / key}"], cwd=place, check=True, timeout=60)
    return place, marks


def test_nothing_of_a_repository_runs_and_nothing_outside_is_written(hostile, tmp_path):
    for program in ("bwrap", "strace"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    place, marks = hostile
    warm, cache = Settings.read().cache_dir, tmp_path / "cache"
    if not (warm / "wheels").is_dir():
        pytest.skip("the cache is cold: `make demo` fills it")
    trace, home = tmp_path / "trace", tmp_path / "home"
    # layers are made anew, so that the interpreter is started too; the rest of the cache serves
    cache.mkdir()
    names = [name for name in ("wheels", "uv", "locks", "bases") if (warm / name).is_dir()]
    served = [part for name in names for part in ("--bind", warm / name, _made(cache / name))]
    words = [
        *("strace", "-f", "-qq", "-e", "trace=execve", "-e", "signal=none", "-z", "-o", trace),
        *("bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/var/tmp"),
        *("--bind", tmp_path, tmp_path, *served),
        *("--unshare-user", "--uid", "1000", "--cap-drop", "ALL", "--chdir", tmp_path),
        *(sys.executable, "-m", "flops.cli.main", "build", place, "--platform", str(Platform.host())),
        *("--output", tmp_path / "images", "--quiet"),
    ]
    done = subprocess.run(
        list(map(str, words)),
        env={**os.environ, "TMPDIR": _made(tmp_path / "temporary"), "HOME": _made(home), "FLOPS_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=570,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if "Creating new namespace failed" in done.stderr or "ptrace" in done.stderr:
        pytest.skip("this machine allows no user namespaces, or no tracing")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "images" / "index.json").is_file()
    assert list(marks.iterdir()) == []
    assert list((tmp_path / "temporary").iterdir()) == []
    started = set(re.findall(r'execve\("([^"]+)"', trace.read_text()))
    assert {program for program in started if not ALLOWED.fullmatch(program)} == set()


def _made(directory):
    directory.mkdir(exist_ok=True)
    return str(directory)
