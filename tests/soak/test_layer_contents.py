"""Layers of the example for both Pythons and platforms against what uv installs from the same locks; and podman's view of one."""

import json
import shutil
import subprocess
import tarfile
import tempfile

import pytest
from tests import layer_contents as contents

from flops.oci.layout import Layout
from flops.platforms import Platform

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("platform", list(Platform), ids=str)
@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_layers_hold_what_uv_installs(home, tmp_path, python, platform):
    reference = contents.build(home, python, platform)
    install = contents.installed_by_uv(python, platform)
    assert contents.compare(home, reference, platform, python, install, tmp_path) > 5000


def test_podman_sees_the_same_files(home, tmp_path):
    for program in ("podman", "skopeo"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    host = Platform.host()
    reference = contents.build(home, "3.11", host)
    short = tempfile.mkdtemp(prefix="flops-")  # podman takes no long path here
    storage = ["--root", tmp_path / "root", "--runroot", short, "--storage-driver", "vfs"]

    def podman(*words):
        done = subprocess.run(
            ["podman", *map(str, [*storage, *words])], check=False, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    archive = tmp_path / "image.tar"
    words = ["skopeo", "copy", f"oci:{home / 'images'}:{reference}", f"oci-archive:{archive}:checked"]
    subprocess.run(words, check=True, capture_output=True, timeout=600)
    try:
        podman("load", "--quiet", "--input", archive)
        image = json.loads(podman("images", "--format", "json"))[0]["Id"]
        container = podman("create", image, "--help")
        exported = tmp_path / "exported.tar"
        podman("export", "--output", exported, container)
    finally:
        podman("rm", "--all", "--force")
        podman("rmi", "--all", "--force")
        shutil.rmtree(short, ignore_errors=True)
    with tarfile.open(exported) as tar:
        theirs = {item.name.removeprefix("./"): item.size for item in tar if item.isfile()}
    ours = contents.extracted(Layout(home / "images"), reference, host)
    made_by_engines = {"etc/hostname", "etc/hosts", "etc/resolv.conf", "run/.containerenv", "etc/mtab"}
    assert set(theirs) - made_by_engines == set(ours) - made_by_engines
