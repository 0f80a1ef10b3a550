"""A build with a standalone Python for real: a Python of this machine, packed as uv's builds are, runs the ML environment."""

import functools
import hashlib
import http.server
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from tests.learner_start import start_learner

from flops.base.debian.debian_base import SUITES, Suite
from flops.oci.layout import Layout
from flops.platforms import Platform

pytestmark = pytest.mark.integration

HOST = Platform.host()
OTHER = next(platform for platform in Platform if platform is not HOST)
SOON = 120
DEBIANS = {Suite.read(name).python for name in SUITES}

MODEL_MANAGER = """\
import bz2, ctypes, hashlib, lzma, os, platform, sqlite3, ssl, sys, sysconfig, zlib
import numpy as np
from data_manager import DataManager
from flops_utils.ml_repo_templates import ModelManagerTemplate

print("ml:", platform.python_version(), sys.base_prefix, sysconfig.get_path("stdlib"), os.__cached__, np.__version__)
print("cached:", os.path.exists(os.__cached__), "ssl:", ssl.create_default_context().cert_store_stats()["x509_ca"] > 100)


class ModelManager(ModelManagerTemplate):
    def __init__(self):
        self.weights = np.zeros((3, 4))

    def set_model_data(self):
        self.data = DataManager().get_data()

    def get_model(self):
        return self.weights

    def get_model_parameters(self):
        return [self.weights]

    def set_model_parameters(self, parameters):
        (self.weights,) = parameters

    def fit_model(self):
        return len(self.data)

    def evaluate_model(self):
        return 0.0, 1.0, len(self.data)
"""
DATA_MANAGER = """\
import numpy as np
from flops_utils.ml_repo_templates import DataManagerTemplate


class DataManager(DataManagerTemplate):
    def __init__(self):
        self.data = self._prepare_data()

    def _prepare_data(self):
        return np.arange(60)

    def get_data(self):
        return self.data
"""


def some_python():
    """The oldest Python of this machine that our worker runs on and Debian has not: its version and its prefix."""
    places = {Path(sys.base_prefix), *Path(sys.base_prefix).parent.glob("3.*")}
    found = []
    for place in places:
        for program in place.glob("bin/python3.*"):
            if not re.fullmatch(r"python3\.(9|1\d)", program.name):
                continue
            told = subprocess.run(
                [program, "-c", "import platform; print(platform.python_version())"],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            ).stdout.strip()
            # what numpy 1.26 has wheels for
            if re.fullmatch(r"3\.(9|10|11|12)\.\d+", told) and told not in DEBIANS:
                found.append((tuple(map(int, told.split("."))), told, place))
    if not found:
        pytest.skip("no Python here is of another version than Debian's")
    return min(found)[1:]


def packed(version, prefix):
    """That Python as uv expects a build: its own directory finds its library wherever it lies."""
    minor = version.rpartition(".")[0]
    library = f"{prefix}/lib".encode()
    beside = b"$ORIGIN/../lib"
    names = [f"bin/python{minor}", *(path.relative_to(prefix) for path in prefix.glob("lib/libpython3*.so*"))]
    unwanted = re.compile(r"/(site-packages|dist-packages|test|tests|__pycache__|idlelib|config-[^/]*)(/|$)")
    names += [path.relative_to(prefix) for path in (prefix / f"lib/python{minor}").rglob("*")]
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w:gz", compresslevel=1) as archive:
        for name in sorted(map(str, names)):
            if unwanted.search(name) or not (prefix / name).is_file():
                continue
            data = (prefix / name).read_bytes()
            if name.startswith(("bin/", "lib/libpython")) and len(library) >= len(beside):
                data = data.replace(library + b"\0", beside + b"\0" * (len(library) - len(beside) + 1))
            member = tarfile.TarInfo(f"python/{name}")
            member.size, member.mode = len(data), 0o755 if name.startswith("bin/") else 0o644
            archive.addfile(member, io.BytesIO(data))
    return output.getvalue()


def small(version, platform):
    """The other platform's build: its files are never run here."""
    minor = version.rpartition(".")[0]
    library = f"lib/python{minor}"
    settings = (
        b"# system configuration generated and used by the sysconfig module\nbuild_time_vars = {'prefix': '/install'}\n"
    )
    files = {
        f"bin/python{minor}": b"program",
        f"{library}/os.py": b"name = 'posix'\n",
        f"{library}/_sysconfigdata__linux_{platform.multiarch}.py": settings,
    }
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"python/{name}")
            member.size, member.mode = len(data), 0o755 if name.startswith("bin/") else 0o644
            archive.addfile(member, io.BytesIO(data))
    return output.getvalue()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@pytest.fixture
def server(tmp_path):
    """A directory, and its address."""
    root = tmp_path / "downloads"
    root.mkdir()
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root))
    threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
    yield root, f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


def write_list(root, url, version, archives):
    major, minor, patch = map(int, version.split("."))
    entries = {}
    for platform, data in archives.items():
        name = f"python-{platform.machine}.tar.gz"
        (root / name).write_bytes(data)
        entries[f"cpython-{version}-linux-{platform.machine}-gnu"] = {
            "name": "cpython",
            "arch": {"family": platform.machine, "variant": None},
            "os": "linux",
            "libc": "gnu",
            "major": major,
            "minor": minor,
            "patch": patch,
            "prerelease": "",
            "url": f"{url}/{name}",
            "sha256": hashlib.sha256(data).hexdigest(),
            "variant": None,
            "build": "1",
        }
    (root / "list.json").write_text(json.dumps(entries))
    return f"{url}/list.json"


def flops(home, *words, **variables):
    """The result's JSON, and what stood on stderr; skips where nothing can be downloaded."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FLOPS_", "UV_"))}
    done = subprocess.run(
        [sys.executable, "-m", "flops.cli.main", *map(str, words), "--json"],
        env={
            **inherited,
            "FLOPS_CACHE_DIR": str(home / "cache"),
            "FLOPS_DATA_DIR": str(home / "data"),
            **variables,
        },
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        error = json.loads(done.stdout)["error"]
        if error["code"] in ("INDEX_UNREACHABLE", "BASE_UNAVAILABLE"):
            pytest.skip(f"nothing can be downloaded here: {error['message']}")
        pytest.fail(done.stderr)
    return json.loads(done.stdout), done.stderr


def write_repository(directory, python):
    directory.mkdir()
    (directory / "model_manager.py").write_text(MODEL_MANAGER)
    (directory / "data_manager.py").write_text(DATA_MANAGER)
    (directory / "conda.yaml").write_text(f"dependencies:\n- python={python}\n- numpy=1.26.4\n")
    return directory


def test_the_worker_runs_on_the_python_that_was_asked_for_and_flower_on_debians(server, tmp_path):
    version, prefix = some_python()
    minor = version.rpartition(".")[0]
    root, url = server
    listed = write_list(root, url, version, {HOST: packed(version, prefix), OTHER: small(version, OTHER)})
    repository = write_repository(tmp_path / "sample", version)
    words = ("build", repository, "--flavor", "sklearn", "--platform", f"{HOST},{OTHER}")
    result, told = flops(tmp_path, *words, "--output", tmp_path / "images", UV_PYTHON_DOWNLOADS_JSON_URL=listed)
    assert result["python"] == {"requested": version, "used": version, "provider": "uv"}, told
    assert result["adjustments"] == []
    (note,) = [one for one in result["findings"] if one["code"].startswith("PYTHON")]
    assert (note["code"], note["path"], note["line"]) == ("PYTHON_STANDALONE", "conda.yaml", 2)
    assert "PYTHON_STANDALONE" in told
    layout = Layout(tmp_path / "images")
    lines = start_learner(layout, result, tmp_path / "root")
    (ml,) = [line.partition("ml: ")[2].split() for line in lines if "ml: " in line]
    assert ml == [
        version,
        "/opt/flops/python",
        f"/opt/flops/python/lib/python{minor}",
        f"/opt/flops/python/lib/python{minor}/__pycache__/os.cpython-{minor.replace('.', '')}.pyc",
        "1.26.4",
    ]
    assert any("cached: True ssl: True" in line for line in lines), lines
    assert any(f"Python {version}" in line and "machine()" in line for line in lines), lines
    assert any("worker: 1 parameters: (3, 4) <f8" in line for line in lines), lines

    # the same from another cache
    again, _ = flops(tmp_path / "else", *words, "--output", tmp_path / "others", UV_PYTHON_DOWNLOADS_JSON_URL=listed)
    assert again["images"]["learner"]["digest"] == result["images"]["learner"]["digest"]
