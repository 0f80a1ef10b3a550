"""Against the package index that this machine uses, with what real repositories ask for."""

from __future__ import annotations

import hashlib

import pytest

from flops.errors import IndexUnreachable
from flops.formats import requirements as reader
from flops.locking.lock import Locker
from flops.platforms import Platform
from flops.progress import Silent
from flops.recipe import Recipe
from flops.repair.doctor import LockRequest, find_locks
from flops.repair.pythons import PythonChoice
from flops.settings import Settings
from flops.wheels.wheel_cache import WheelCache

pytestmark = pytest.mark.integration

AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64
OFFERED = (
    PythonChoice(version="3.11.2", minor="3.11", glibc=(2, 36), provider="debian", suite="bookworm"),
    PythonChoice(version="3.13.5", minor="3.13", glibc=(2, 41), provider="debian", suite="trixie"),
)
SCIKIT_LEARN = """\
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
"""
OLD_PROTOBUF = """\
dependencies:
- python=3.11.5
- pip
- pip:
  - protobuf==3.20.3
  - numpy==1.23.5
  - scipy==1.11.4
  - pandas==2.1.4
  - pillow==10.0.1
  - scikit-learn==1.3.2
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def locker(cache):
    settings = Settings.read()
    locker = Locker(cache, index_url=settings.index_url, ca_bundle=settings.ca_bundle)
    try:
        with locker.index() as index:
            index.knows("packaging")
    except IndexUnreachable as error:
        pytest.skip(f"the package index is not reachable: {error}")
    return locker


def run(locker: Locker, name: str, text: str):
    request = LockRequest(platforms=tuple(Platform), pythons=OFFERED, recipe=Recipe(), reporter=Silent())
    return find_locks(reader.read({name: text.encode()}), request, locker=locker)


def told(resolution):
    return [(a.code, a.package, a.before, a.after, a.platform, a.where) for a in resolution.adjustments]


def test_a_pin_without_an_arm64_wheel_and_an_old_python(locker: Locker):
    resolution = run(locker, "conda.yaml", SCIKIT_LEARN)
    assert told(resolution) == [
        ("PYTHON_MOVED", "python", "3.10.14", "3.11.2", None, "conda.yaml:5"),
        ("PIN_RELAXED", "psutil", "==5.9.8", "==6.0.0", "linux/arm64", "conda.yaml:11"),
    ]
    amd64, arm64 = (resolution.locks[platform].versions for platform in (AMD64, ARM64))
    pins = {"cloudpickle": "3.0.0", "numpy": "1.26.4", "packaging": "24.0", "pyyaml": "6.0.1", "scipy": "1.13.0"}
    assert pins.items() <= amd64.items()
    assert "mlflow" not in amd64
    assert amd64["psutil"] == "5.9.8"
    assert arm64 == {**amd64, "psutil": "6.0.0"}


def test_old_protobuf_and_numpy_lock_as_they_are(locker: Locker):
    resolution = run(locker, "conda.yaml", OLD_PROTOBUF)
    assert told(resolution) == [("PYTHON_MOVED", "python", "3.11.5", "3.11.2", None, "conda.yaml:2")]
    for lock in resolution.locks.values():
        assert lock.versions["protobuf"] == "3.20.3"
        assert lock.versions["numpy"] == "1.23.5"
        assert lock.versions["pillow"] == "10.0.1"


def test_unpinned_requirements_agree_between_platforms(locker: Locker):
    resolution = run(locker, "requirements.txt", "scikit-learn\n")
    assert resolution.adjustments == ()
    assert resolution.python.version == "3.11.2"
    amd64, arm64 = (resolution.locks[platform] for platform in (AMD64, ARM64))
    assert amd64.versions == arm64.versions
    assert amd64.digest != arm64.digest
    assert all(wheel.size for lock in (amd64, arm64) for wheel in lock.wheels)


def test_wheels_of_both_platforms_are_fetched_and_verified(locker: Locker, cache):
    locks = run(locker, "requirements.txt", "psutil\npyyaml\n").locks
    wheels = [wheel for lock in locks.values() for wheel in lock.wheels]
    counted = []
    settings = Settings.read()
    with WheelCache(cache / "wheels", index_url=settings.index_url, ca_bundle=settings.ca_bundle) as wheel_cache:
        fetched = {wheel: wheel_cache.fetch(wheel, on_bytes=counted.append) for wheel in wheels}
    assert len(fetched) == 4
    assert sum(counted) == sum(lock.bytes for lock in locks.values())
    for wheel, path in fetched.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == wheel.sha256
