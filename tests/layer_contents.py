"""What is in the layers of real images, compared with what an installer makes of the same lock; for two test suites."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import stat
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from flops.oci.image import parse_index, parse_manifest
from flops.oci.layout import Layout
from flops.platforms import Platform

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits-sklearn"
ENVIRONMENTS = {"ml": "opt/flops/ml", "runtime": "opt/flops/runtime"}
#: What an installation says of itself, in each dist-info; and bytecode, which we make otherwise.
OWN = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json"}
#: The packages of the layer "FLOps shims".
SHIMS = ("flops_utils/", "flops_wire/", "flops_worker/", "flops_actor/")


@dataclass(frozen=True)
class Content:
    """A file: what is in it, and whether it can be executed."""

    sha256: str
    executable: bool


def flops(home, *words, seconds=900):
    environment = {**os.environ, "FLOPS_CACHE_DIR": str(home / "cache"), "FLOPS_DATA_DIR": str(home / "data")}
    environment.pop("FLOPS_REGISTRY", None)
    done = subprocess.run(
        [sys.executable, "-m", "flops.cli.main", *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def build(home, python, platform):
    """The learner's reference in the layout `home/images`."""
    words = ("build", EXAMPLE, "--platform", platform.value, "--python", python, "--output", home / "images", "--json")
    return flops(home, *words, "--quiet")["images"]["learner"]["reference"]


def layers(layout, reference, platform):
    """Bottom to top, as open tars."""
    index = parse_index(layout.blobs.read(layout.read(reference).digest))
    manifest = parse_manifest(layout.blobs.read(index.find(platform).digest))
    for layer in manifest.layers:
        with gzip.open(layout.blobs.path(layer.digest)) as file, tarfile.open(fileobj=file, mode="r|") as archive:
            yield layer.digest, archive


def extracted(layout, reference, platform):
    """All files of an image by path, as a runtime lays layer over layer; fails where a layer has a path twice."""
    files: dict[str, Content] = {}
    for digest, archive in layers(layout, reference, platform):
        seen = set()
        for item in archive:
            name = item.name.rstrip("/")
            assert name not in seen, f"{digest} has {name} twice"
            seen.add(name)
            assert not name.rpartition("/")[2].startswith(".wh."), f"{digest} deletes {name}"
            if item.isfile():
                content = hashlib.sha256(archive.extractfile(item).read()).hexdigest()
                files[name] = Content(content, bool(item.mode & stat.S_IXUSR))
    return files


def wheels(home, lock, place):
    """The lock's wheels under their own names, out of the builder's cache."""
    place.mkdir(parents=True)
    for package in tomllib.loads(lock)["packages"]:
        (wheel,) = package["wheels"]
        digest = wheel["hashes"]["sha256"]
        (place / wheel["name"]).hardlink_to(home / "cache" / "wheels" / digest[:2] / f"{digest}.whl")
    return sorted(place.iterdir())


def installed_by_pip(target, files):
    """This machine's own Python and platform."""
    words = ["-m", "pip", "install", "--target", target, "--no-deps", "--no-index", "--no-compile", "--quiet"]
    _run(sys.executable, *words, "--disable-pip-version-check", *files)


def installed_by_uv(python, platform):
    """Any Python and platform."""

    def install(target, files):
        words = ["pip", "install", "--target", target, "--no-deps", "--offline", "--no-config", "--quiet"]
        words += ["--python", sys.executable, "--python-version", python, "--link-mode", "copy", "--no-cache"]
        words += ["--python-platform", f"{platform.machine}-manylinux_2_40"]
        _run(Path(sys.executable).with_name("uv"), *words, *files)

    return install


def _run(*words):
    done = subprocess.run([*map(str, words)], check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def on_disk(target):
    return {
        path.relative_to(target).as_posix(): Content(
            hashlib.sha256(path.read_bytes()).hexdigest(), os.access(path, os.X_OK)
        )
        for path in target.rglob("*")
        if path.is_file()
    }


def compare(home, reference, platform, python, install, place):
    """Each environment of an image against the installer's; the number of files that were compared."""
    image = extracted(Layout(home / "images"), reference, platform)
    shown = flops(home, "images", "show", reference, "--directory", home / "images", "--locks", "--json")
    compared = 0
    for name, prefix in ENVIRONMENTS.items():
        lock = shown[f"pylock.{name}-{platform.value.replace('/', '-')}.toml"]
        target = place / name
        install(target, wheels(home, lock, place / f"{name}-wheels"))
        expected = {path: one for path, one in on_disk(target).items() if _counts(path)}
        site = f"{prefix}/lib/python{python}/site-packages/"
        ours = {path.removeprefix(site): one for path, one in image.items() if path.startswith(site)}
        ours = {path: one for path, one in ours.items() if _counts(path) and not path.startswith(SHIMS)}
        modules = {
            path: one for path, one in expected.items() if not path.startswith(("bin/", "share/", "etc/", "include/"))
        }
        scripts = {path for path in expected if path.startswith("bin/")}
        programs = {
            path.removeprefix(f"{prefix}/")
            for path, one in image.items()
            if path.startswith(f"{prefix}/bin/") and one.executable
        }
        _same(f"{name}: only installed", modules.keys() - ours.keys())
        _same(f"{name}: only in layers", ours.keys() - modules.keys())
        _same(f"{name}: different", {path for path, one in modules.items() if ours[path].sha256 != one.sha256})
        _same(f"{name}: other scripts", scripts ^ programs)
        compared += len(modules) + len(scripts)
    return compared


def _same(what, paths):
    assert not paths, f"{what}: {sorted(paths)[:20]} of {len(paths)}"


def _counts(path):
    name = path.rpartition("/")[2]
    return "__pycache__" not in path and not (".dist-info/" in path and name in OWN) and name != ".lock"


__all__ = ["Platform", "build", "compare", "extracted", "installed_by_pip", "installed_by_uv"]
