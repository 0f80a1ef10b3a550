"""What goes into the builder image beside what the index and Debian give: this distribution, and the lists that name the rest."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import flops
from flops.base import Base
from flops.base.debian.debian_base import DebianBase, Suite
from flops.cli import images_make
from flops.errors import UsageError
from flops.images import runtime
from flops.oci.blobs import BlobStore
from flops.oci.entries import File, Link
from flops.oci.image import ImageConfig, ImageIndex, compose, index
from flops.oci.layer import LayerWriter
from flops.oci.layout import Layout
from flops.platforms import Platform
from flops.settings import Settings
from flops.use_cases import builder_image as one
from flops.use_cases.builder_image import BuilderImage, distribution

ROOT = Path(__file__).parents[2]
SITE = f"{one.PREFIX}/lib/python3.13/site-packages"


def small_image(store):
    """An index of one layer, with what it is made of in `store`."""
    with store.writer() as blob:
        writer = LayerWriter(blob)
        writer.file("hello", b"world")
        layer = writer.close()
        blob.commit(layer.digest)
    images = [compose(ImageConfig(platform=platform, created=one.CREATED), [layer], {}) for platform in Platform]
    return BuilderImage(index=index(images), store=store)


def test_the_list_pins_all_that_this_distribution_depends_on():
    suite = Suite.read("builder")
    pins = runtime.read_pins(f"builder-{suite.minor}")
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for requirement in map(Requirement, wanted):
        version = pins.versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is not {version}: make lock"
    assert len(pins.hashes) >= len(pins.versions)


def test_the_builders_packages_are_known_apart_from_the_bases(tmp_path):
    keys = {
        DebianBase(Suite.read(name), cache_dir=tmp_path, blobs=BlobStore(tmp_path), settings=Settings())._set_key(
            Platform.LINUX_AMD64
        )
        for name in ("trixie", "bookworm", "builder")
    }
    assert len(keys) == 3
    builder, base = Suite.read("builder"), Suite.read("trixie")
    assert (builder.name, builder.python, builder.glibc) == (base.name, base.python, base.glibc)
    assert not set(builder.wanted) & builder.left_out


def test_this_distribution_goes_in_as_it_is_installed_without_what_is_made_again():
    files = {entry.path: entry for entry in distribution("3.13")}
    for name in (
        "flops/cli/main.py",
        "flops/job/__init__.py",
        "flops/resources/runtime-3.11.txt",
        "flops/resources/debian-trixie.toml",
        "flops_wire/events.py",
        "flops_actor/learner.py",
        "flops_worker/compat/flops_utils/__init__.py",
    ):
        assert f"{SITE}/{name}" in files
    assert not [path for path in files if path.endswith(".pyc") or "__pycache__" in path or "/examples/" in path]
    assert all(isinstance(entry, File) and isinstance(entry.data, Path) for entry in files.values())


def test_both_forms_start(tmp_path):
    base = Base(
        platform=Platform.LINUX_AMD64,
        python="3.13.5",
        glibc=(2, 41),
        interpreter="/usr/bin/python3.13",
        layers=(),
        lock="",
    )
    entries = {entry.path: entry for entry in one._skeleton(base)}
    assert entries[f"{one.PREFIX}/bin/python3"] == Link(path=f"{one.PREFIX}/bin/python3", target="/usr/bin/python3.13")
    program, main = entries[f"{one.PREFIX}/bin/flops"], entries[f"{one.WORK}/main.py"]
    assert isinstance(program, File)
    assert isinstance(main, File)
    assert program.executable
    assert isinstance(program.data, bytes)
    assert isinstance(main.data, bytes)
    assert program.data.decode().splitlines()[0] == f"#!/{one.PREFIX}/bin/python -P"
    for source in (program.data, main.data):
        modules = [node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
        assert all((ROOT / "src" / (module.replace(".", "/") + ".py")).is_file() for module in modules)
    assert entries[f"{one.PREFIX}/pyvenv.cfg"].data.decode().startswith("home = /usr/bin\n")


def test_the_environment_writes_below_tmp_alone():
    variables = one._variables()
    assert all(variables[name].startswith("/tmp/") for name in ("HOME", "FLOPS_CACHE_DIR", "FLOPS_DATA_DIR"))
    assert variables["PATH"].split(":")[0] == f"/{one.PREFIX}/bin"
    assert not [name for name in variables if "MIRROR" in name or "INDEX" in name]


def test_a_tag_is_of_one_content(tmp_path):
    image = small_image(BlobStore(tmp_path))
    assert re.fullmatch(re.escape(flops.__version__) + "-[0-9a-f]{12}", image.tag)
    other = BuilderImage(index=ImageIndex(document=image.index.document + b" ", images=()), store=image.store)
    assert other.tag != image.tag


def test_it_is_written_into_a_layout_and_an_archive(tmp_path):
    image = small_image(BlobStore(tmp_path / "cache"))
    name = images_make._deliver(image, "1", client=None, output=tmp_path / "layout", pull=None)
    assert name == "flops/builder:1"
    assert Layout(tmp_path / "layout").read(name).digest == image.index.digest
    images_make._deliver(image, "1", client=None, output=tmp_path / "image.tar", pull=None)
    assert (tmp_path / "image.tar").stat().st_size > 1024
    document = images_make._document(image, name)
    assert document["platforms"].keys() == {"linux/amd64", "linux/arm64"}


@pytest.mark.parametrize("more", [{}, {"registry": "http://127.0.0.1:1", "output": Path("x")}])
def test_it_goes_to_one_place(monkeypatch, more):
    monkeypatch.delenv("FLOPS_REGISTRY", raising=False)
    with pytest.raises(UsageError, match="one place"):
        images_make.builder_command(**more)
