"""A whole build whose largest wheel has 2 GB stays small in memory: from a local index, through the cache, into a registry.

The index serves what a first, small build fetched from the real one, and the large wheel, made here. Needs 9 GB of disk.
"""

import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flops.platforms import Platform
from flops.registry.app import EmbeddedRegistry

pytestmark = pytest.mark.integration

#: MB of the wheel, and of what any process of the build may use.
WHEEL, MOST = 2000, 400
ROOM = 9 * 1024**3
MODEL_MANAGER = """\
import large
from flops_utils.ml_repo_templates import ModelManagerTemplate


class ModelManager(ModelManagerTemplate):
    def set_model_data(self): ...
    def get_model(self): ...
    def get_model_parameters(self): ...
    def set_model_parameters(self, parameters): ...
    def fit_model(self): ...
    def evaluate_model(self): ...
"""
DATA_MANAGER = """\
from flops_utils.ml_repo_templates import DataManagerTemplate


class DataManager(DataManagerTemplate):
    def _prepare_data(self): ...
    def get_data(self): ...
"""
#: Starts a build and tells the largest of its processes, in KB.
MEASURED = """\
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "flops.cli.main", *sys.argv[1:]])
sys.stderr.write(f"peak {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}\\n")
sys.exit(done.returncode)
"""


def bench():
    path = Path(__file__).parents[2] / "bench" / "memory.py"
    specification = importlib.util.spec_from_file_location("bench_memory", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Index:
    """Wheels by name (PEP 503), with their metadata beside them (PEP 658): nobody reads a wheel to learn what it needs."""

    def __init__(self, root):
        self.root = root

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(root)))
        self.server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def add(self, filename, path, metadata):
        name = re.sub(r"[-_.]+", "-", filename.partition("-")[0]).lower()
        directory = self.root / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / filename).hardlink_to(path)
        (directory / f"{filename}.metadata").write_bytes(metadata)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        told = f'data-core-metadata="sha256={hashlib.sha256(metadata).hexdigest()}"'
        with (directory / "index.html").open("a") as page:
            page.write(f'<a href="{filename}#sha256={digest}" {told}>{filename}</a><br>\n')


def repository(directory, requirements, model):
    directory.mkdir(parents=True)
    (directory / "model_manager.py").write_text(model)
    (directory / "data_manager.py").write_text(DATA_MANAGER)
    (directory / "requirements.txt").write_text(requirements)
    who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "Sample"]):
        subprocess.run(["git", *who, *words], cwd=directory, check=True, timeout=60)
    return directory


def flops(cache, *words, start=("-m", "flops.cli.main"), **settings):
    environment = {**os.environ, **settings, "FLOPS_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, *start, *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        timeout=3000,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def metadata(path):
    import zipfile

    with zipfile.ZipFile(path) as archive:
        name = next(one for one in archive.namelist() if one.endswith(".dist-info/METADATA") and one.count("/") == 1)
        return archive.read(name)


@pytest.mark.timeout(3600)
def test_a_build_with_a_wheel_of_two_gigabytes_stays_small(tmp_path):
    if shutil.disk_usage(tmp_path).free < ROOM:
        pytest.skip("needs 9 GB of disk")
    host = Platform.host()
    small = repository(tmp_path / "small", "idna\n", MODEL_MANAGER.replace("import large\n", "import idna\n"))
    place = tmp_path / "images"
    result, _ = flops(tmp_path / "cache", "build", small, "--flavor", "sklearn", "--output", place, "--json")
    reference = result["images"]["learner"]["reference"]
    locks, _ = flops(tmp_path / "cache", "images", "show", reference, "--directory", place, "--locks", "--json")
    with Index(tmp_path / "simple") as index, EmbeddedRegistry(tmp_path / "registry") as registry:
        for package in tomllib.loads(locks[f"pylock.runtime-{str(host).replace('/', '-')}.toml"])["packages"]:
            (wheel,) = package["wheels"]
            digest = wheel["hashes"]["sha256"]
            path = tmp_path / "cache" / "wheels" / digest[:2] / f"{digest}.whl"
            index.add(wheel["name"], path, metadata(path))
        large = bench().make_wheel(tmp_path, WHEEL)
        index.add(large.name, large, metadata(large))
        shutil.rmtree(tmp_path / "cache" / "wheels")
        shutil.rmtree(tmp_path / "cache" / "uv", ignore_errors=True)
        project = repository(tmp_path / "project", "large\n", MODEL_MANAGER)
        result, told = flops(
            tmp_path / "cache",
            *(
                "build",
                project,
                "--flavor",
                "sklearn",
                "--registry",
                registry.registry,
                "--json",
                "--quiet",
                "--upgrade",
            ),
            start=("-c", MEASURED),
            FLOPS_INDEX_URL=index.url,
        )
    assert result["bytes"]["uploaded"] > WHEEL * 1_000_000
    peak = int(re.search(r"peak (\d+)", told)[1]) * 1024 / 1e6
    sys.stdout.write(f"wheel of {WHEEL} MB: the largest process of the build had {peak:.0f} MB\n")
    assert peak < MOST
