"""Imports against what wheels provide: what counts, what is missing, what is advised."""

from __future__ import annotations

import sys

import pytest
from packaging.requirements import Requirement as Pep508

from flops.contract.structure import ImportedModule
from flops.locking.lock import Lock, LockedWheel
from flops.platforms import Platform
from flops.repair import imports
from flops.wheels.provides import provided

AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64


def imported(module: str, line: int = 1, path: str = "model_manager.py", **more) -> ImportedModule:
    return ImportedModule(path=path, line=line, name=module.partition(".")[0], module=module, **more)


class Shelf:
    """Stands for wheels' directories; notes which were looked into."""

    def __init__(self, **roots: set[str]) -> None:
        self.roots = {name.replace("_", "-"): frozenset(found) for name, found in roots.items()}
        self.read: list[str] = []

    def modules(self, wheels):
        self.read += [wheel.name for wheel in wheels]
        return {wheel.sha256: self.roots[wheel.name] for wheel in wheels}

    def lock(self, platform: Platform = AMD64, *, without: tuple[str, ...] = ()) -> Lock:
        wheels = tuple(
            LockedWheel(name=name, version="1", filename=f"{name}.whl", url="http://x", sha256=name, size=1)
            for name in sorted(self.roots)
            if name not in without
        )
        return Lock(platform=platform, python="3.11.2", wheels=wheels)


@pytest.mark.parametrize(
    ("name", "python", "there"),
    [
        ("os", "3.11.2", True),
        ("tomllib", "3.11.2", True),
        ("tomllib", "3.10.14", False),
        ("asyncore", "3.11.2", True),
        ("asyncore", "3.13.5", False),
        ("imghdr", "3.12.1", True),
        ("imghdr", "3.13.5", False),
        ("distutils", "3.11.2", False),
        ("numpy", "3.11.2", False),
    ],
)
def test_the_standard_library_is_that_of_the_image(name, python, there):
    assert imports.in_standard_library(name, python) is there


def test_only_imports_that_must_be_there_count():
    found = imports.needed(
        [
            imported("numpy", 3),
            imported("numpy", 9),
            imported("seaborn", guarded=True),
            imported("pytest", path="tests/test_x.py", reached=False),
            imported("os.path"),
            imported("flops_utils.ml_repo_templates"),
            imported("mlflow.sklearn"),
        ],
        "3.11.2",
        ignored={"mlflow"},
    )
    assert [(item.module, item.line) for item in found] == [("numpy", 3)]


def test_likely_wheels_are_looked_into_first_and_often_alone():
    shelf = Shelf(numpy={"numpy"}, scikit_learn={"sklearn"}, joblib={"joblib"}, opencv_python={"cv2"})
    wanted = [imported("numpy"), imported("sklearn.linear_model"), imported("cv2")]
    assert imports.missing(wanted, {AMD64: shelf.lock()}, shelf) == []
    assert sorted(shelf.read[:2]) == ["numpy", "scikit-learn"]
    assert imports.missing([imported("numpy")], {AMD64: shelf.lock()}, last := Shelf(numpy={"numpy"})) == []
    assert last.read == ["numpy"]


def test_what_no_wheel_provides_is_missing_once_at_its_first_place():
    shelf = Shelf(numpy={"numpy"})
    wanted = imports.needed([imported("cv2.aruco", 7), imported("cv2", 2), imported("numpy")], "3.11.2")
    (one,) = imports.missing(wanted, {AMD64: shelf.lock()}, shelf)
    assert (one.item.name, one.item.line, one.platforms) == ("cv2", 2, (AMD64,))


def test_a_shared_namespace_is_compared_below_it():
    shelf = Shelf(protobuf={"google.protobuf"})
    wanted = [imported("google.protobuf.message"), imported("google.cloud.storage", 5)]
    (one,) = imports.missing(wanted, {AMD64: shelf.lock()}, shelf)
    assert one.item.module == "google.cloud.storage"
    assert imports.known().requirement(one.item.module) == "google-cloud-storage"


def test_a_module_that_one_platform_lacks_is_told_for_it():
    shelf = Shelf(numpy={"numpy"}, fast={"fast"})
    locks = {AMD64: shelf.lock(), ARM64: shelf.lock(ARM64, without=("fast",))}
    (one,) = imports.missing([imported("fast", 4)], locks, shelf)
    finding = imports.finding(one, all_platforms=[AMD64, ARM64], hint="")
    assert finding.where == "model_manager.py:4"
    assert finding.message == "fast is imported, and no locked package provides it on linux/arm64"


def test_a_module_that_left_python_is_told_so():
    one = imports.MissingModule(item=imported("cgi"), platforms=(AMD64,))
    finding = imports.finding(one, all_platforms=[AMD64], hint="")
    assert finding.message.endswith("(it is not part of Python 3.13 and later here)")


@pytest.mark.parametrize(
    ("module", "roots", "begins"),
    [
        ("sklearm", {"sklearn"}, "did you mean sklearn? Else add"),
        ("tensorfow.keras", (), "did you mean tensorflow? Else add"),
        ("mypkg", {"mypkgs"}, "did you mean mypkgs? Else add"),
        ("ourcompany", (), "add the package that provides ourcompany"),
        ("flwr", (), "Flower runs beside the ML environment"),
        ("google.colab", (), "this exists in Colab's notebooks only"),
    ],
)
def test_advice(module, roots, begins):
    assert imports.advice(module, roots).startswith(begins)


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("net", "src"),
        ("pkg", "src"),
        ("pkg.layers", "src"),
        ("pkg.more.deep", "lib/inner"),
        ("top", None),
        ("pkg.absent", None),
        ("layer", None),
        ("data", None),
    ],
)
def test_modules_that_lie_below_the_root_are_seen(module, place):
    paths = ["top.py", "top/x.py", "src/net.py", "src/pkg/__init__.py", "src/pkg/layers/one.py", "old/src/net.py"]
    assert imports.directory_of(module, [*paths, "lib/inner/pkg/more/deep.py", "src/data/x.csv"]) == place


@pytest.mark.parametrize(
    ("module", "begins"),
    [
        ("data.loader", "data is a directory of the repository that lacks the module loader: commit"),
        ("data", "data is a directory of the repository that has no module: commit"),
        ("dat", ""),
        ("top", ""),
        ("seaborn", ""),
    ],
)
def test_a_directory_of_the_repository_is_no_reason_to_propose_a_package(module, begins):
    hint = imports.not_in_directory(module, ["top.py", "data/x.csv", "src/seaborn/x.csv"])
    assert hint.startswith(begins)
    assert bool(hint) is bool(begins)


@pytest.mark.parametrize(
    ("module", "package"),
    [("some_thing.x", "some-thing"), ("_private", None), ("flwr.client", None), ("ünder", None)],
)
def test_only_names_that_a_package_can_have_are_looked_for(module, package):
    assert imports.same_name(module) == package


def test_the_data_file_is_sound():
    table = imports.known()
    for module, requirement in table.packages.items():
        Pep508(requirement)
        assert all(part.isidentifier() for part in module.split(".")), module
    assert not table.packages.keys() & table.absent.keys()
    standard = {name for name in sys.stdlib_module_names if name not in table.removed}
    assert not table.packages.keys() & standard
    assert table.requirement("PIL.Image") == "pillow"
    assert table.requirement("torch.nn.functional") == "torch"
    assert table.requirement("google.cloud") is None
    assert provided("cv2", {"cv2"})
