"""The builder image for real: made, pushed, pulled, and run as a node runs it: any user, read-only, a tmpfs on /tmp."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from flops.base.debian import apt
from flops.errors import BaseUnavailable
from flops.oci.client import RegistryClient
from flops.oci.reference import Reference
from flops.platforms import Platform
from flops.registry.app import EmbeddedRegistry
from flops.settings import Settings

pytestmark = pytest.mark.integration

FLOPS = Path(sys.executable).with_name("flops")
EXAMPLE = Path(__file__).parents[2] / "examples" / "digits-sklearn"
LIMITS = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:1000")
#: What says that the machine, not the image, lacks something.
NOT_HERE = ("BASE_UNAVAILABLE", "INDEX_UNREACHABLE")
LARGEST = 200 * 1000 * 1000
#: apt as an unprivileged user in the image, for another suite and a foreign platform.
APT = """
import tempfile
from pathlib import Path
from flops.base.debian import apt
from flops.platforms import Platform
from flops.settings import Settings

settings = Settings.read()
mirror = apt.mirror(main=settings.debian_mirror, security=settings.debian_security_mirror)
for suite, platform in (("bookworm", Platform.LINUX_ARM64), ("trixie", Platform.LINUX_AMD64)):
    with tempfile.TemporaryDirectory() as directory:
        root = apt.AptRoot(Path(directory), mirror=mirror, suite=suite, platform=platform)
        root.update()
        print(suite, {package.architecture for package in root.resolve(["libc6"])})
"""


def run(*words, code=0, seconds=300, env=None):
    done = subprocess.run(
        [str(word) for word in words],
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
    )
    assert code in (None, done.returncode), f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def place():
    """Short: podman refuses long paths."""
    path = Path(tempfile.mkdtemp(prefix="flops-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def made(place):
    """What `flops images builder --json` says of both platforms, in a registry that lives as long as this file's tests."""
    with EmbeddedRegistry(place / "registry") as registry:
        words = [FLOPS, "images", "builder", "--registry", f"http://{registry.registry}/team", "--quiet", "--json"]
        done = run(*words, code=None, seconds=600)
        document = json.loads(done.stdout)
        if document.get("error", {}).get("code") in NOT_HERE:
            pytest.skip(document["error"]["message"])
        assert done.returncode == 0, done.stderr
        yield document


@pytest.fixture(scope="module")
def container(place, made):
    """Runs a program in the image: `container("flops", "--version")`."""
    if shutil.which("podman") is None or shutil.which("runc") is None or os.geteuid() != 0:
        pytest.skip("containers with podman's overlay driver need podman, runc and root")
    (place / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{place}/graph"\nrunroot = "{place}/run"\n'
    )
    engine, env = ("podman", "--runtime", "runc"), {"CONTAINERS_STORAGE_CONF": str(place / "storage.conf")}
    run(*engine, "pull", "--quiet", "--tls-verify=false", made["reference"], env=env)

    def start(program, *arguments, options=(), code=0):
        words = [*engine, "run", "--rm", "--pull=never", "--network=host", "--cap-drop=all", *LIMITS, "--read-only"]
        words += ["--tmpfs", "/tmp:rw,exec,mode=1777", "--security-opt", "no-new-privileges", *options]
        return run(*words, "--entrypoint", program, made["reference"], *arguments, env=env, code=code)

    yield start
    run(*engine, "rm", "--all", "--force", env=env, code=None)
    run("umount", "--lazy", place / "graph" / "overlay", code=None)


def as_here():
    """Options with which the image reaches index and mirror as this machine does."""
    words = []
    if bundle := os.environ.get("SSL_CERT_FILE"):
        words += ["--volume", f"{bundle}:/etc/ssl/certs/ca-certificates.crt:ro"]
    for name in ("FLOPS_INDEX_URL", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        words += ["--env", name] if name in os.environ else []
    settings = Settings.read()
    try:
        mirror = apt.mirror(main=settings.debian_mirror, security=settings.debian_security_mirror)
    except BaseUnavailable as error:
        pytest.skip(f"no Debian packages here: {error.message}")
    words += ["--env", f"FLOPS_DEBIAN_MIRROR={mirror.main}"]
    return [*words, "--env", f"FLOPS_DEBIAN_SECURITY_MIRROR={mirror.security}"] if mirror.security else words


def test_both_platforms_are_small_and_named_by_digest(made):
    assert made["platforms"].keys() == {"linux/amd64", "linux/arm64"}
    assert all(one["bytes"] < LARGEST for one in made["platforms"].values())
    assert made["reference"].endswith("@" + made["digest"])
    reference = Reference.parse(made["reference"])
    with RegistryClient(reference.registry) as client:
        assert client.images(reference.repository, reference.tag).keys() == set(Platform)
    assert reference.repository == "team/flops/builder"


def test_making_it_again_gives_the_same(made):
    registry = made["reference"].partition("/")[0]
    again = json.loads(
        run(FLOPS, "images", "builder", "--registry", f"http://{registry}/team", "--quiet", "--json").stdout
    )
    assert again == made


def test_it_starts_as_a_node_starts_it(container):
    assert container("flops", "--version").stdout.startswith("flops ")
    told = container(
        "python3", "-c", "import os, sys, flops; print(os.getuid(), os.getcwd(), flops.__cached__, sys.version)"
    )
    uid, directory, cached, _ = told.stdout.split(maxsplit=3)
    assert (uid, directory) == ("65532", "/opt/flops/job")
    assert container("python3", "-c", f"import os; print(os.path.exists({cached!r}))").stdout == "True\n"
    assert "usage: main.py" in container("python3", "main.py", "--help").stdout


def test_its_programs_find_what_they_need(container):
    for program, words, said in (
        ("uv", ["--version"], "uv "),
        ("sh", ["-c", "echo $0"], "sh"),
        ("bwrap", ["--version"], "bubblewrap"),
        ("git", ["ls-remote", "https://127.0.0.1:9/x"], "Could not connect"),
        ("git", ["ls-remote", "ssh://a@127.0.0.1:9/x"], "Connection refused"),
    ):
        done = container(program, *words, code=None)
        assert said in done.stdout + done.stderr


def test_a_repository_is_checked_in_it(container):
    options = [*as_here(), "--volume", f"{EXAMPLE}:/example:ro"]
    words = ["check", "/example", "--platform", "linux/amd64,linux/arm64", "--json", "--quiet"]
    found = json.loads(container("flops", *words, options=options, code=None).stdout)
    if found.get("error", {}).get("code") in NOT_HERE:
        pytest.skip(found["error"]["message"])
    assert found["locks"].keys() == {"linux/amd64", "linux/arm64"}


def test_apt_works_in_it_without_privileges(container):
    said = container("python3", "-c", APT, options=as_here()).stdout
    assert said == "bookworm {'arm64'}\ntrixie {'amd64'}\n"


def test_flops_own_manager_starts_it_and_hears_why_it_failed(container, components):
    """FLOps' form as Oakestra runs it; a whole build in it is `make soak`'s."""
    words = ["http://127.0.0.1:1", "p1", components.broker, components.observer, "--supported_platforms=linux/amd64"]
    done = container("python3", "main.py", *words, "fl_actors", "file:///etc", "sklearn")
    components.wait_for(messages=2, texts=1)
    topic = "flops_manager/fl_actors_image_builder"
    assert components.messages == [
        [f"{topic}/started", {"flops_project_id": "p1"}],
        [f"{topic}/failed", {"flops_project_id": "p1", "error_msg": components.texts[0]}],
    ], done.stderr
    assert components.texts[0].startswith("error[BAD_URL]: ")
