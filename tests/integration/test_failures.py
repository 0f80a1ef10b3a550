"""What can go wrong, through the real command line: its code, one clear message with a hint, its exit code, and no image."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flops.oci.client import RegistryClient
from flops.oci.image import INDEX, ImageConfig, compose, index
from flops.oci.layer import LayerWriter
from flops.oci.layout import BlobStore
from flops.platforms import Platform
from flops.registry.app import EmbeddedRegistry

pytestmark = pytest.mark.integration

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits-sklearn"
#: Nothing listens there: TCP's discard port, for root alone.
CLOSED = "127.0.0.1:9"


@pytest.fixture
def repository(tmp_path):
    """The example as a Git repository of one commit."""
    directory = tmp_path / "digits"
    shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns("data", "__pycache__"))
    commit(directory)
    return directory


def commit(directory):
    who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "Digits"]):
        subprocess.run(["git", *who, *words], cwd=directory, check=True, timeout=60)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=directory, check=True, capture_output=True, text=True)
    return head.stdout.strip()


def flops(place, *words, env=None, seconds=180):
    """Run the command line with a cache and a home of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLOPS_")}
    ours = {
        "HOME": str(place),
        "FLOPS_CACHE_DIR": str(place / "cache"),
        "FLOPS_DATA_DIR": str(place / "data"),
        "COLUMNS": "200",
    }
    return subprocess.run(
        [sys.executable, "-m", "flops.cli.main", *map(str, words)],
        env={**inherited, **ours, **(env or {})},
        cwd=place,
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )


def expect(done, exit_code, code, *parts):
    """A failure with --json: one object on stdout, the same message for people on stderr, with a hint; gives the object."""
    assert done.returncode == exit_code, done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"error"}
    error = document["error"]
    assert set(error) == {"code", "message", "hint", "findings"}
    assert error["code"] == code
    assert error["hint"]
    for part in parts:
        assert part in error["message"] + error["hint"], error
    told = done.stderr
    assert told.count(f"error[{code}]: {error['message']}") == 1
    assert f"hint: {error['hint']}".splitlines()[0] in told
    assert "Traceback" not in told + done.stdout
    return error


def no_image(place):
    """Nothing under any name, neither in the data directory's layout nor in a directory that was named."""
    for name in ("data/images", "images"):
        assert not (place / name / "index.json").exists()


# --- 2: usage ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["build", ".", "--frobnicate"], "USAGE", "--frobnicate"),
        (["build"], "USAGE", "SOURCE"),
        (["bild", "."], "USAGE", "bild"),
        (["build", ".", "--compression", "rar"], "USAGE", "rar"),
        (["build", ".", "--python", "two"], "USAGE", "two"),
        (["build", ".", "--platform", "linux/riscv64"], "UNKNOWN_PLATFORM", "linux/arm64"),
        (["build", ".", "--registry", "x", "--output", "y"], "USAGE", "exclude each other"),
        (["build", ".", "--registry", "UPPER/../x"], "BAD_TARGET", "UPPER"),
    ],
)
def test_usage(tmp_path, words, code, part):
    expect(flops(tmp_path, *words, "--json"), 2, code, part)
    no_image(tmp_path)


def test_without_json_stdout_stays_empty(tmp_path):
    done = flops(tmp_path, "build", ".", "--frobnicate")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error[USAGE]: No such option: --frobnicate")
    assert "hint: flops build --help" in done.stderr


def test_a_setting_that_can_not_be_used(tmp_path, repository):
    done = flops(tmp_path, "build", repository, "--json", env={"FLOPS_WORKERS": "many"})
    expect(done, 2, "BAD_SETTING", "FLOPS_WORKERS")


def test_a_cache_directory_that_can_not_be_used(tmp_path, repository):
    (tmp_path / "file").touch()
    done = flops(tmp_path, "build", repository, "--json", env={"FLOPS_CACHE_DIR": str(tmp_path / "file")})
    expect(done, 2, "BAD_SETTING", "cache directory")


# --- 3: source --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("source", "code"),
    [
        (f"https://{CLOSED}/acme/digits", "CLONE_FAILED"),
        ("ssh://git@127.0.0.1:9/acme/digits", "CLONE_FAILED"),
        ("nowhere/at/all", "BAD_URL"),
        ("https://ann:secret@127.0.0.1:9/acme/digits", "CREDENTIAL_IN_URL"),
        ("ext::sh -c true", "BAD_URL"),
    ],
)
def test_an_unreachable_repository(tmp_path, source, code):
    done = flops(tmp_path, "build", source, "--json")
    expect(done, 3, code)
    assert "secret" not in done.stdout + done.stderr
    no_image(tmp_path)


def test_a_ref_that_is_not_there(tmp_path, repository):
    expect(flops(tmp_path, "build", repository, "--ref", "v9", "--json"), 3, "REF_NOT_FOUND", "v9")


# --- 4: structure -----------------------------------------------------------------------------------------------------
def test_a_missing_model_manager(tmp_path, repository):
    (repository / "model_manager.py").unlink()
    error = expect(flops(tmp_path, "build", repository, "--json"), 4, "STRUCTURE", "model_manager.py")
    (finding,) = error["findings"]
    assert (finding["path"], finding["line"]) == ("model_manager.py", 0)
    assert "class ModelManager" in finding["hint"]
    no_image(tmp_path)


# --- 5: dependencies --------------------------------------------------------------------------------------------------
def test_an_index_that_is_not_there(tmp_path, repository):
    done = flops(tmp_path, "build", repository, "--json", env={"FLOPS_INDEX_URL": f"http://{CLOSED}/simple"})
    expect(done, 5, "INDEX_UNREACHABLE", CLOSED)
    no_image(tmp_path)


def test_a_requirement_that_is_forbidden(tmp_path, repository):
    (repository / "conda.yaml").write_text("dependencies:\n- pip:\n  - numpy @ http://127.0.0.1:9/numpy.whl\n")
    error = expect(flops(tmp_path, "build", repository, "--json"), 5, "REQUIREMENT_FORBIDDEN", "conda.yaml")
    assert [(one["path"], one["line"]) for one in error["findings"]] == [("conda.yaml", 3)]


# --- 6: build ---------------------------------------------------------------------------------------------------------
def test_no_mirror_for_the_base(tmp_path, repository):
    if shutil.which("apt-get") is None:
        pytest.skip("apt-get is not installed")
    done = flops(
        tmp_path,
        "build",
        repository,
        "--output",
        tmp_path / "images",
        "--json",
        env={"FLOPS_DEBIAN_MIRROR": f"http://{CLOSED}/debian"},
    )
    if '"INDEX_UNREACHABLE"' in done.stdout:
        pytest.skip("no package index answers here")
    expect(done, 6, "BASE_UNAVAILABLE", CLOSED, "--base-image", "FLOPS_DEBIAN_MIRROR")
    no_image(tmp_path)


def test_no_apt_for_the_base(tmp_path, repository):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("git", "uv"):
        found = shutil.which(name) or str(Path(sys.executable).with_name(name))
        (programs / name).symlink_to(found)
    done = flops(tmp_path, "build", repository, "--output", tmp_path / "images", "--json", env={"PATH": str(programs)})
    if '"INDEX_UNREACHABLE"' in done.stdout:
        pytest.skip("no package index answers here")
    expect(done, 6, "BASE_UNAVAILABLE", "apt-get", "--base-image")
    no_image(tmp_path)


def test_a_base_image_that_is_not_there(tmp_path, repository):
    with EmbeddedRegistry(tmp_path / "registry") as registry:
        base = f"127.0.0.1:{registry.port}/bases/python:3.11"
        done = flops(tmp_path, "build", repository, "--base-image", base, "--json")
        expect(done, 6, "BASE_UNAVAILABLE", base)
    done = flops(tmp_path, "build", repository, "--base-image", f"{CLOSED}/python:3.11", "--json")
    expect(done, 6, "BASE_UNAVAILABLE", CLOSED)
    no_image(tmp_path)


def test_an_output_that_can_not_be_written(tmp_path, repository):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "below", tmp_path / "file" / "images.tar"):
        expect(flops(tmp_path, "build", repository, "--output", place, "--json"), 6, "OUTPUT", "file")
    assert (tmp_path / "file").read_text() == ""


# --- 7: registry ------------------------------------------------------------------------------------------------------
def test_an_unreachable_registry_is_told_before_any_work(tmp_path, repository):
    done = flops(tmp_path, "build", repository, "--registry", CLOSED, "--json")
    expect(done, 7, "REGISTRY_UNREACHABLE", CLOSED)
    assert "resolve" not in done.stderr
    assert not (tmp_path / "cache").exists()


def test_a_failed_build_leaves_the_tag_as_it_was(tmp_path, repository):
    """Tags that hold somebody's image hold it still when a build with --force fails, here for want of a base."""
    if shutil.which("apt-get") is None:
        pytest.skip("apt-get is not installed")
    head = commit_of(repository)
    blobs = BlobStore(tmp_path / "blobs")
    with blobs.writer() as blob:
        writer = LayerWriter(blob)
        writer.file("etc/motd", b"the old one")
        layer = writer.close()
        blob.commit(layer.digest)
    image = compose(ImageConfig(platform=Platform.LINUX_AMD64, created="2026-01-01T00:00:00Z"), [layer])
    with EmbeddedRegistry(tmp_path / "registry") as registry, RegistryClient(registry.registry) as client:
        for actor in ("learner", "aggregator"):
            client.push_index(f"local/digits/{actor}", index([image]), blobs, [head])
        done = flops(
            tmp_path,
            "build",
            repository,
            "--registry",
            registry.registry.host,
            "--force",
            "--json",
            env={"FLOPS_DEBIAN_MIRROR": f"http://{CLOSED}/debian"},
        )
        if '"INDEX_UNREACHABLE"' in done.stdout:
            pytest.skip("no package index answers here")
        expect(done, 6, "BASE_UNAVAILABLE", CLOSED)
        for actor in ("learner", "aggregator"):
            name = f"local/digits/{actor}"
            assert client.tags(name) == (head,)
            found = client.get_manifest(name, head)
            assert (found.media_type, found.digest) == (INDEX, index([image]).digest)


def commit_of(repository):
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_build_as_cancelled(tmp_path, repository, number):
    """While it waits for an index that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        words = [
            sys.executable,
            "-m",
            "flops.cli.main",
            "build",
            str(repository),
            "--output",
            str(tmp_path / "out"),
            "--json",
        ]
        settings = {
            "FLOPS_CACHE_DIR": str(tmp_path / "cache"),
            "FLOPS_DATA_DIR": str(tmp_path / "data"),
            "FLOPS_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/simple",
        }
        pipe = subprocess.PIPE
        child = subprocess.Popen(words, env={**os.environ, **settings}, stdout=pipe, stderr=pipe, text=True)
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection:
            child.send_signal(number)
            out, err = child.communicate(timeout=150)
    assert child.returncode == 130, err
    assert json.loads(out)["error"]["code"] == "CANCELLED"
    assert not (tmp_path / "out" / "index.json").exists()
