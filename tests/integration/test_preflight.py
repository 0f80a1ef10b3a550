"""Checks against the package index that this machine uses: the data files are true, and what real repositories bring is told."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from flops.errors import IndexUnreachable, NoWheel, Unresolvable
from flops.locking.lock import Locker
from flops.platforms import Platform
from flops.progress import Silent
from flops.recipe import Recipe
from flops.repair import imports, trackers
from flops.repository.source import parse_source
from flops.request import Request
from flops.settings import Settings
from flops.use_cases.check import check
from flops.wheels.provides import Provides, provided
from flops.wheels.wheel_cache import WheelCache

pytestmark = pytest.mark.integration

AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64
MANAGER = """\
{imports}
from flops_utils.ml_repo_templates import ModelManagerTemplate


class ModelManager(ModelManagerTemplate):
    def set_model_data(self): ...
    def get_model(self): ...
    def get_model_parameters(self): ...
    def set_model_parameters(self, parameters): ...
    def fit_model(self): ...
    def evaluate_model(self): ...
"""
DATA = """\
class DataManager:
    def _prepare_data(self): ...
    def get_data(self): ...
"""


class Recorder(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, stage, message, *, hint="") -> None:
        self.warnings.append(message)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return Settings(cache_dir=tmp_path_factory.mktemp("cache"), data_dir=tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def locker(settings: Settings):
    locker = Locker(settings.cache_dir, index_url=settings.index_url, ca_bundle=settings.ca_bundle)
    try:
        with locker.index() as index:
            index.knows("packaging")
    except IndexUnreachable as error:
        pytest.skip(f"the package index is not reachable: {error}")
    return locker


@pytest.fixture(scope="module")
def provides(settings: Settings):
    cache = WheelCache(settings.cache_dir / "wheels", index_url=settings.index_url, ca_bundle=settings.ca_bundle)
    with cache:
        yield Provides(settings.cache_dir / "provides", cache, ca_bundle=settings.ca_bundle)


def contents(locker: Locker, provides: Provides, requirements):
    """The modules of each requirement's own wheel; None where it has no wheel."""

    def lock(text):
        try:
            return locker.lock([text], platform=AMD64, python="3.11.2", glibc=(2, 36), dependencies=False)
        except (NoWheel, Unresolvable):
            return None

    with ThreadPoolExecutor(3) as pool:
        locks = dict(zip(requirements, pool.map(lock, requirements), strict=True))
    roots = provides.modules([wheel for one in locks.values() if one for wheel in one.wheels])
    return {
        text: one and frozenset().union(*(roots[wheel.sha256] for wheel in one.wheels)) for text, one in locks.items()
    }


def test_every_package_that_is_added_for_a_module_has_it(locker: Locker, provides: Provides):
    table = imports.known().packages
    found = contents(locker, provides, sorted(set(table.values())))
    wrong = {module: text for module, text in table.items() if not provided(module, found[text] or ())}
    assert wrong == {}


def test_every_tracker_has_the_modules_that_lead_to_it(locker: Locker, provides: Provides):
    table = trackers.trackers()
    found = contents(locker, provides, sorted(table))
    wrong = {
        name: module
        for name, one in table.items()
        for module in one.modules
        if found[name] and not provided(module, found[name])
    }
    assert wrong == {}


@pytest.fixture
def checked(tmp_path, settings: Settings, locker: Locker):
    def run(requirements: str, lines: str, recorder=None):
        root = tmp_path / "digits"
        root.mkdir()
        texts = {
            "model_manager.py": MANAGER.format(imports=lines),
            "data_manager.py": DATA,
            "requirements.txt": requirements,
        }
        for name, text in texts.items():
            (root / name).write_text(text)
        for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
            subprocess.run(["git", "-c", "user.name=A", "-c", "user.email=a@x", *words], cwd=root, check=True)
        request = Request(source=parse_source(str(root)), platforms=(AMD64, ARM64), recipe=Recipe())
        return check(request, settings=settings, reporter=recorder or Recorder())

    return run


def test_well_known_modules_are_added(checked):
    report = checked("scikit-learn==1.4.2\nnumpy==1.26.4\n", "import cv2, yaml, sklearn\nfrom PIL import Image")
    assert {(one.package, one.where) for one in report.adjustments if one.code == "ADDED"} == {
        ("opencv-python-headless", "model_manager.py:1"),
        ("pyyaml", "model_manager.py:1"),
        ("pillow", "model_manager.py:2"),
    }
    assert all(lock.versions["numpy"] == "1.26.4" for lock in report.locks.values())
    assert [one for one in report.findings if one.code == "IMPORT_MISSING"] == []


def test_a_tracker_deep_in_the_closure_is_told_with_its_chain(checked):
    report = checked("numpy\nsimpletransformers==0.64.3\n", "import numpy")
    found = [one for one in report.findings if one.code == "TRACKER" and "wandb" in one.message]
    assert [(one.where, "(simpletransformers -> wandb)" in one.message) for one in found] == [
        ("requirements.txt:2", True)
    ]


def test_pytorch_is_for_cpus_or_the_size_of_cuda_is_told(checked):
    recorder = Recorder()
    report = checked("torch==2.1.1\ntorchvision\nnumpy==1.26.4\n", "import torch, torchvision", recorder)
    amd64, arm64 = report.locks[AMD64], report.locks[ARM64]
    preflight = report.preflight
    if not preflight.cpu_refusal:
        assert amd64.versions["torch"] == "2.1.1+cpu"
        assert preflight.cuda[AMD64].packages == ()
        return
    assert amd64.versions["torch"] == arm64.versions["torch"] == "2.1.1"
    assert preflight.cuda[AMD64].bytes > 1_900_000_000
    assert preflight.cuda[ARM64].packages == ()
    assert len([text for text in recorder.warnings if "linux/amd64" in text and "nvidia-" in text]) == 1


def test_tensorflow_is_for_cpus(checked):
    report = checked("tensorflow==2.12.0\nnumpy==1.23.5\nprotobuf==3.20.3\n", "import tensorflow as tf")
    assert [(one.code, one.after) for one in report.adjustments] == [("CPU_BUILD", "tensorflow-cpu==2.12.0")]
    assert report.locks[AMD64].versions["tensorflow-cpu"] == report.locks[ARM64].versions["tensorflow"] == "2.12.0"
    assert all(lock.versions["protobuf"] == "3.20.3" for lock in report.locks.values())
    assert [one for one in report.findings if one.code == "IMPORT_MISSING"] == []
