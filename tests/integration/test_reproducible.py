"""The same commit, built again elsewhere: another user, umask, time zone, locale, hash seed, place and number of workers."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from flops.oci.image import parse_config, parse_index, parse_manifest
from flops.oci.layout import Layout

pytestmark = pytest.mark.integration

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits-sklearn"
ACTORS = ("learner", "aggregator")
PLATFORMS = ("linux/amd64", "linux/arm64")
NOBODY = 65534
#: What may come from the first cache: downloads and what was resolved. Every layer is made anew.
DOWNLOADED = ("wheels", "locks", "bases/debs", "bases/sets")
#: Seconds between the end of the first build and the begin of the second.
APART = 61
FIRST = {"TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1", "FLOPS_WORKERS": "2"}
SECOND = {"TZ": "Asia/Kathmandu", "LC_ALL": "POSIX", "PYTHONHASHSEED": "4242", "FLOPS_WORKERS": "5"}


@pytest.fixture(scope="module")
def place():
    """A directory that every user may pass through; pytest's own are for their user alone."""
    with tempfile.TemporaryDirectory(prefix="flops-again-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def make_repository(directory):
    shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns("data", "__pycache__"))
    who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false"]
    when = {"GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z", "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z"}
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "Digits"]):
        subprocess.run(["git", *who, *words], cwd=directory, env={**os.environ, **when}, check=True, timeout=60)


def as_another_user():
    """How to start a program as nobody: by itself, or, where this Python lies in a home of root's, in a user namespace."""
    if os.geteuid() != 0:
        return [], {}
    plain: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    mapped = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]
    for words, options in (([], plain), (mapped, {})):
        told = [*words, sys.executable, "-c", "import os; print(os.getuid())"]
        try:
            done = subprocess.run(told, check=False, capture_output=True, text=True, timeout=60, **options)
        except OSError:
            continue
        if done.stdout.strip() == str(NOBODY):
            return words, options
    pytest.skip("no program can be started as another user here")


def build(home, *, env, umask, start=((), {})):
    """Build home/here/digits into home/images, started by other words where they are given; the result's JSON."""
    words, options = start
    done = subprocess.run(
        [
            *words,
            sys.executable,
            "-m",
            "flops.cli.main",
            "build",
            str(home / "here" / "digits"),
            "--platform",
            ",".join(PLATFORMS),
            "--output",
            str(home / "images"),
            "--json",
        ],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("FLOPS_", "LC_", "XDG_"))},
            "HOME": str(home),
            "TMPDIR": str(home / "tmp"),
            "FLOPS_CACHE_DIR": str(home / "cache"),
            "FLOPS_DATA_DIR": str(home / "data"),
            **env,
        },
        cwd=home / "tmp",
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        umask=umask,
        **options,
    )
    if done.returncode:
        code = json.loads(done.stdout)["error"]["code"]
        if code in ("INDEX_UNREACHABLE", "BASE_UNAVAILABLE"):
            pytest.skip(f"nothing can be downloaded here: {done.stderr[-300:]}")
        pytest.fail(done.stderr)
    return json.loads(done.stdout)


def described(home, result):
    """What each image is made of, by actor and platform: first what differs tells, then the digests."""
    blobs = Layout(home / "images").blobs
    found = {}
    for actor in ACTORS:
        index = parse_index(blobs.read(result["images"][actor]["digest"]))
        for entry in index.manifests:
            manifest = parse_manifest(blobs.read(entry.digest))
            config = parse_config(blobs.read(manifest.config.digest))
            layers = zip(config.comments, config.diff_ids, manifest.layers, strict=True)
            found[actor, str(entry.platform)] = {
                "layers": [(comment, diff_id, layer.digest) for comment, diff_id, layer in layers],
                "annotations": manifest.annotations,
                "labels": config.labels,
                "environment": config.environment,
                "config": manifest.config.digest,
                "manifest": entry.digest,
            }
    return found


@pytest.fixture(scope="module")
def first(place):
    home = place / "first"
    (home / "tmp").mkdir(parents=True)
    (home / "here").mkdir()
    make_repository(home / "here" / "digits")
    result = build(home, env=FIRST, umask=0o022)
    return home, result, time.monotonic()


def test_the_same_commit_has_the_same_digests(place, first):
    before, result, ended = first
    home = place / "somewhere" / "else"
    (home / "tmp").mkdir(parents=True)
    shutil.copytree(before / "here", home / "here", symlinks=True)
    for name in DOWNLOADED:
        shutil.copytree(before / "cache" / name, home / "cache" / name)
    start = as_another_user()
    if "user" in start[1]:
        for path in [home, *home.rglob("*")]:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    time.sleep(max(0.0, APART - (time.monotonic() - ended)))
    again = build(home, env=SECOND, umask=0o077, start=start)

    assert again["bytes"]["downloaded"] == 0, "wheels were taken along, so that only our own work is compared"
    assert not {path.name for path in (before / "cache" / "bases" / "layers").iterdir()} - {
        path.name for path in (home / "cache" / "bases" / "layers").iterdir()
    }, "the base was made again, not brought along"
    ours, theirs = described(before, result), described(home, again)
    assert set(ours) == {(actor, platform) for actor in ACTORS for platform in PLATFORMS}
    for image, one in ours.items():
        for part, value in one.items():
            assert theirs[image][part] == value, (image, part)
    for actor in ACTORS:
        assert again["images"][actor]["digest"] == result["images"][actor]["digest"]
    assert again["commit"] == result["commit"]
    assert again["adjustments"] == result["adjustments"]


def test_only_the_actors_own_layer_tells_learner_and_aggregator_apart(first):
    home, result, _ = first
    found = described(home, result)
    for platform in PLATFORMS:
        learner, aggregator = (found[actor, platform]["layers"] for actor in ACTORS)
        assert learner[:-1] == aggregator[:-1]
        assert learner[-1] != aggregator[-1]


def test_platforms_share_what_does_not_depend_on_them(first):
    home, result, _ = first
    found = described(home, result)
    amd64, arm64 = ({layer[0]: layer[2] for layer in found["learner", platform]["layers"]} for platform in PLATFORMS)
    shared = {comment for comment in amd64 if amd64[comment] == arm64.get(comment)}
    assert "FL runtime, every machine, bytecode" in shared
    assert {"FLOps shims", "ML repository", "learner actor"} <= shared
    assert len(shared) >= len(amd64) // 3
