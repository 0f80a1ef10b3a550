"""`flops build` for real: repositories with the pins that are seen in the wild, and every place where images can go."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.learner_start import start_learner

from flops.base.debian.debian_base import DebianBase, Suite
from flops.oci.blobs import BlobStore
from flops.oci.client import RegistryClient
from flops.oci.image import ImageConfig, compose, index, parse_config, parse_index, parse_manifest
from flops.oci.layout import Layout
from flops.platforms import Platform
from flops.registry.app import EmbeddedRegistry
from flops.settings import Settings

pytestmark = pytest.mark.integration

ACTORS = ("learner", "aggregator")
AMD64, ARM64 = "linux/amd64", "linux/arm64"
BOTH = f"{AMD64},{ARM64}"
HOST = Platform.host()
#: Seconds until a learner has loaded the user's code, on a busy machine.
SOON = 120
SERVED = "machine() = {machine}, Python 3.11.2"

MODEL_MANAGER = """\
import numpy as np
from data_manager import DataManager
from flops_utils.ml_repo_templates import ModelManagerTemplate
from sklearn.linear_model import LogisticRegression


class ModelManager(ModelManagerTemplate):
    def __init__(self):
        self.model = LogisticRegression()
        self.model.coef_ = np.zeros((3, 4))
        self.model.intercept_ = np.zeros(3)

    def set_model_data(self):
        self.train, self.test = DataManager().get_data()

    def get_model(self):
        return self.model

    def get_model_parameters(self):
        return [self.model.coef_, self.model.intercept_]

    def set_model_parameters(self, parameters):
        self.model.coef_, self.model.intercept_ = parameters

    def fit_model(self):
        self.model.fit(*self.train)
        return len(self.train)

    def evaluate_model(self):
        return 0.0, self.model.score(*self.test), len(self.test)
"""
DATA_MANAGER = """\
from importlib.metadata import distributions

import numpy as np
from flops_utils.ml_repo_templates import DataManagerTemplate


class DataManager(DataManagerTemplate):
    def __init__(self):
        self.data = self._prepare_data()

    def _prepare_data(self):
        print("installed:", *sorted(f"{one.name}=={one.version}" for one in distributions()))
        return np.random.RandomState(0).rand(60, 4), np.arange(60) % 3

    def get_data(self):
        return self.data, self.data
"""
#: By name: the dependency file, what it holds, the adjustments, and what the worker then finds installed.
SAMPLES: dict[str, tuple[str, str, list[tuple], list[str]]] = {
    "a scikit-learn list that MLflow wrote": (
        "conda.yaml",
        """\
name: mlflow-env
channels:
- conda-forge
dependencies:
- python=3.10.14
- pip<=24.0
- mlflow=2.12.1
- cloudpickle=3.0.0
- numpy=1.26.4
- packaging=24.0
- psutil=5.9.8
- pyyaml=6.0.1
- scikit-learn=1.4.2
- scipy=1.13.0
""",
        [
            ("PYTHON_MOVED", "python", "3.10.14", "3.11.2", None, "conda.yaml:5"),
            ("REMOVED", "mlflow", "==2.12.1", "", None, "conda.yaml:7"),
            ("PIN_RELAXED", "psutil", "==5.9.8", "==6.0.0", ARM64, "conda.yaml:11"),
        ],
        ["numpy==1.26.4", "packaging==24.0", "psutil==5.9.8", "scikit-learn==1.4.2"],
    ),
    "pins that Flower could not live with": (
        "conda.yaml",
        """\
dependencies:
- python=3.11.5
- pip:
  - protobuf==3.20.3
  - numpy==1.23.5
  - scipy==1.11.4
  - pandas==2.1.4
  - pillow==10.0.1
  - scikit-learn==1.3.2
""",
        [("PYTHON_MOVED", "python", "3.11.5", "3.11.2", None, "conda.yaml:2")],
        ["protobuf==3.20.3", "numpy==1.23.5", "pandas==2.1.4"],
    ),
    "requirements.txt alone": ("requirements.txt", "scikit-learn\n", [], ["scikit-learn=="]),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One cache for this module, so that each wheel is downloaded once."""
    return tmp_path_factory.mktemp("home")


def write_repository(directory, name="requirements.txt", requirements="scikit-learn==1.4.2\nnumpy==1.26.4\n"):
    directory.mkdir(parents=True)
    (directory / "model_manager.py").write_text(MODEL_MANAGER)
    (directory / "data_manager.py").write_text(DATA_MANAGER)
    (directory / name).write_text(requirements)
    who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "Sample"]):
        subprocess.run(["git", *who, *words], cwd=directory, check=True, timeout=60)
    return directory


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return write_repository(tmp_path_factory.mktemp("source") / "sample")


def flops_build(home, *words, seconds=600):
    """The result's JSON, and what stood on stderr; skips where nothing can be downloaded."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLOPS_")}
    done = subprocess.run(
        [sys.executable, "-m", "flops.cli.main", "build", *map(str, words), "--json"],
        env={
            **inherited,
            "FLOPS_CACHE_DIR": str(home / "cache"),
            "FLOPS_DATA_DIR": str(home / "data"),
            "UV_PYTHON_DOWNLOADS": "never",  # the same Pythons on every machine
        },
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        error = json.loads(done.stdout)["error"]
        if error["code"] in ("INDEX_UNREACHABLE", "BASE_UNAVAILABLE"):
            pytest.skip(f"nothing can be downloaded here: {error['message']}")
        pytest.fail(done.stderr)
    return json.loads(done.stdout), done.stderr


def need(*programs):
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def run(*words, seconds=300):
    done = subprocess.run(
        [str(word) for word in words],
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


# --- sample repositories ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sample", SAMPLES)
def test_a_repository_as_they_are_builds_and_its_worker_starts(home, tmp_path, sample):
    name, requirements, adjustments, installed = SAMPLES[sample]
    repository = write_repository(tmp_path / "sample", name, requirements)
    result, told = flops_build(home, repository, "--platform", BOTH, "--output", tmp_path / "images")

    keys = ("code", "package", "before", "after", "platform", "where")
    found = [tuple(one[key] for key in keys) for one in result["adjustments"]]
    assert sorted(found, key=str) == sorted(adjustments, key=str)
    assert all(one["reason"] for one in result["adjustments"])
    for code, package, *_ in adjustments:
        assert f"adjusted[{code}]: {package}" in told
    for actor in ACTORS:
        assert set(result["images"][actor]["platforms"]) == {AMD64, ARM64}
    lines = start_learner(Layout(tmp_path / "images"), result, tmp_path / "root")
    served = SERVED.format(machine=platform.machine())
    assert any(served in line for line in lines), lines
    assert any("worker: 2 parameters: (3, 4) <f8, (3,) <f8" in line for line in lines), lines
    (listed,) = [line for line in lines if "installed:" in line]
    for package in installed:
        assert f" {package}" in listed
    assert "flwr" not in listed
    assert "mlflow" not in listed


# --- places -----------------------------------------------------------------------------------------------------------
def test_skopeo_reads_the_layout_and_the_archive(home, repository, tmp_path):
    need("skopeo")
    directory, archive = tmp_path / "images", tmp_path / "images.tar"
    result, _ = flops_build(home, repository, "--platform", BOTH, "--output", directory)
    again, _ = flops_build(home, repository, "--platform", BOTH, "--output", archive)
    assert [again["images"][actor]["digest"] for actor in ACTORS] == [
        result["images"][actor]["digest"] for actor in ACTORS
    ]
    for actor in ACTORS:
        name = f"local/sample/{actor}:{result['commit']}"
        assert result["images"][actor]["reference"] == name
        for place in (f"oci:{directory}:{name}", f"oci-archive:{archive}:{name}"):
            document = json.loads(run("skopeo", "inspect", "--raw", place))
            offered = {one["platform"]["architecture"]: one["digest"] for one in document["manifests"]}
            ours = result["images"][actor]["platforms"]
            assert offered == {"amd64": ours[AMD64]["digest"], "arm64": ours[ARM64]["digest"]}
    copied = f"oci:{tmp_path / 'copied'}:learner"
    run("skopeo", "copy", "--quiet", "--all", f"oci:{directory}:local/sample/learner:{result['commit']}", copied)
    # what skopeo wrote after checking every digest is what we wrote
    assert Layout(tmp_path / "copied").read("learner").digest == result["images"]["learner"]["digest"]
    config = json.loads(run("skopeo", "inspect", "--config", "--override-arch", "arm64", copied))
    assert (config["os"], config["architecture"]) == ("linux", "arm64")
    assert config["config"]["User"] == "65532:65532"
    assert config["config"]["Labels"]["org.opencontainers.image.revision"] == result["commit"]


def test_podman_takes_what_load_gives_it(home, repository):
    need("podman")
    result, _ = flops_build(home, repository, "--load")
    names = [result["images"][actor]["reference"] for actor in ACTORS]
    try:
        for actor, name in zip(ACTORS, names, strict=True):
            assert name == f"localhost/local/sample/{actor}:{result['commit']}"
            (image,) = json.loads(run("podman", "image", "inspect", name))
            assert f"{name.rpartition(':')[0]}@{result['images'][actor]['digest']}" in image["RepoDigests"]
            assert image["User"] == "65532:65532"
            assert image["Config"]["Entrypoint"] == ["/opt/flops/runtime/bin/python", "main.py"]
            assert image["Labels"]["io.flops.actor"] == actor
    finally:
        run("podman", "rmi", "--force", *names)


def test_a_matching_image_is_used_again_and_a_later_platform_joins_it(home, repository, tmp_path):
    with EmbeddedRegistry(tmp_path / "registry") as server, RegistryClient(server.registry) as client:
        place = ("--registry", server.registry.host)
        first, _ = flops_build(home, repository, *place, "--platform", AMD64)
        assert first["bytes"]["uploaded"] > 0
        second, told = flops_build(home, repository, *place, "--platform", AMD64)
        assert second["bytes"] == {"downloaded": 0, "uploaded": 0, "reused": first_bytes(first, AMD64)}
        assert digests(second) == digests(first)
        assert "assemble" not in told

        joined, _ = flops_build(home, repository, *place, "--platform", ARM64)
        for actor in ACTORS:
            for tag in client.tags(f"local/sample/{actor}"):
                index_document = client.get_manifest(f"local/sample/{actor}", tag).document
                offered = {str(one.platform): one.digest for one in parse_index(index_document).manifests}
                assert offered == {
                    AMD64: first["images"][actor]["platforms"][AMD64]["digest"],
                    ARM64: joined["images"][actor]["platforms"][ARM64]["digest"],
                }
        third, _ = flops_build(home, repository, *place, "--platform", BOTH)
        assert third["bytes"]["uploaded"] == 0
        assert digests(third) == digests(joined)
        forced, _ = flops_build(home, repository, *place, "--platform", AMD64, "--force")
        assert forced["images"]["learner"]["platforms"] == first["images"]["learner"]["platforms"]
        assert digests(forced) == digests(joined), "a platform that stands is not lost"


def test_a_layout_gains_platforms_and_is_used_again(home, repository, tmp_path):
    place = ("--output", tmp_path / "images")
    first, _ = flops_build(home, repository, *place, "--platform", AMD64)
    joined, _ = flops_build(home, repository, *place, "--platform", ARM64)
    again, _ = flops_build(home, repository, *place, "--platform", BOTH)
    assert digests(again) == digests(joined) != digests(first)
    assert again["bytes"]["uploaded"] == 0
    layout = Layout(tmp_path / "images")
    index_document = layout.blobs.read(layout.read(f"local/sample/learner:{first['commit']}").digest)
    assert [str(one.platform) for one in parse_index(index_document).manifests] == [AMD64, ARM64]
    at_once, _ = flops_build(home, repository, "--output", tmp_path / "at-once", "--platform", BOTH)
    assert digests(at_once) == digests(joined), "in whatever order platforms came"
    # a blob that was lost is made again
    layer = parse_manifest(layout.blobs.read(first["images"]["learner"]["platforms"][AMD64]["digest"])).layers[-1]
    layout.blobs.path(layer.digest).unlink()
    repaired, _ = flops_build(home, repository, *place, "--platform", BOTH)
    assert digests(repaired) == digests(joined)
    assert layout.blobs.size(layer.digest) == layer.size


def test_another_recipe_gets_a_tag_of_its_own_and_runs(home, repository, tmp_path):
    with EmbeddedRegistry(tmp_path / "registry") as server, RegistryClient(server.registry) as client:
        place = ("--registry", server.registry.host)
        gzip, _ = flops_build(home, repository, *place)
        zstd, told = flops_build(home, repository, *place, "--compression", "zstd")
        commit, recipe = zstd["commit"], zstd["recipe"].removeprefix("sha256:")[:12]
        assert gzip["recipe"] != zstd["recipe"]
        assert "--force moves it" in told
        for actor in ACTORS:
            name = f"local/sample/{actor}"
            assert zstd["images"][actor]["reference"].endswith(f"/{name}:{commit}-{recipe}")
            assert client.get_manifest(name, commit).digest == gzip["images"][actor]["digest"]
            assert client.get_manifest(name, f"{commit}-{recipe}").digest == zstd["images"][actor]["digest"]
        sizes = [one["images"]["learner"]["platforms"][HOST.value]["bytes"] for one in (zstd, gzip)]
        assert sizes[0] < sizes[1]
        if shutil.which("podman"):
            numpy_runs(f"{server.registry.host}/local/sample/learner:{commit}-{recipe}")
        forced, _ = flops_build(home, repository, *place, "--compression", "zstd", "--force")
        assert digests(forced) == digests(zstd)
        for actor in ACTORS:
            assert client.get_manifest(f"local/sample/{actor}", commit).digest == zstd["images"][actor]["digest"]
    need("podman")


def numpy_runs(reference):
    """Pull with podman and do some arithmetic in the user's environment of the image."""
    runtime = ["--runtime", "runc"] if shutil.which("runc") or Path("/usr/sbin/runc").exists() else []
    run("podman", "pull", "--quiet", "--tls-verify=false", reference)
    try:
        words = ["podman", *runtime, "run", "--rm", "--read-only", "--tmpfs", "/tmp", "--network=host"]
        words += ["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:1000"]
        program = "import numpy, sklearn; print(numpy.__version__, sklearn.__version__, numpy.arange(4).sum())"
        told = run(*words, "--entrypoint", "/opt/flops/ml/bin/python", reference, "-c", program)
        assert told.split() == ["1.26.4", "1.4.2", "6"]
    finally:
        run("podman", "rmi", "--force", reference)


def test_a_base_image_instead_of_debian_packages(home, repository, tmp_path):
    """The base is an image like any other, here one that is made of our own base's layers, with variables of its own."""
    flops_build(home, repository, "--output", tmp_path / "warm")  # skips where there is no base
    store = BlobStore(home / "cache")
    provider = DebianBase(Suite.read("bookworm"), cache_dir=home / "cache", blobs=store, settings=Settings())
    (base,) = provider.prepare([HOST]).values()
    config = ImageConfig(
        platform=HOST, created="2026-01-01T00:00:00Z", environment={"GREETING": "hello", "PYTHONPATH": "/nowhere"}
    )
    image = index([compose(config, base.layers)])
    with EmbeddedRegistry(tmp_path / "registry") as server, RegistryClient(server.registry) as client:
        client.push_index("bases/python", image, store, ["3.11"])
        name = f"{server.registry.host}/bases/python:3.11"
        result, _ = flops_build(home, repository, "--base-image", name, "--output", tmp_path / "images")
    assert result["python"] == {"requested": None, "used": "3.11.2", "provider": "base-image"}
    layout = Layout(tmp_path / "images")
    manifest = parse_manifest(layout.blobs.read(result["images"]["learner"]["platforms"][HOST.value]["digest"]))
    assert [layer.digest for layer in manifest.layers[:2]] == [layer.digest for layer in base.layers]
    variables = parse_config(layout.blobs.read(manifest.config.digest)).environment
    assert variables["GREETING"] == "hello"
    assert "PYTHONPATH" not in variables
    lines = start_learner(layout, result, tmp_path / "root")
    assert any("worker: 2 parameters" in line for line in lines), lines


def digests(result):
    return {actor: result["images"][actor]["digest"] for actor in ACTORS}


def first_bytes(result, name):
    """Bytes of the layers, as the second build counts them: of each actor's image."""
    return sum(result["images"][actor]["platforms"][name]["bytes"] for actor in ACTORS)
