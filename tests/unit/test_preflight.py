"""A check from a repository to its report, with git and uv for real, against an index on loopback."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import threading
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flops.cli.check import show
from flops.errors import ImportMissing, RegistryUnreachable
from flops.images.plan import ml_layers
from flops.oci.blobs import BlobStore
from flops.oci.client import RegistryClient
from flops.platforms import Platform
from flops.progress import Silent
from flops.recipe import Compression, Policy, Recipe
from flops.registry.app import EmbeddedRegistry
from flops.repository.source import parse_source
from flops.request import Request
from flops.settings import Settings
from flops.store.shared import REPOSITORY, SharedCache
from flops.use_cases.check import AskedRegistry, check
from flops.use_cases.result import Amount
from flops.wheels.layer_cache import LayerCache, layer_key
from flops.wheels.wheel_cache import WheelCache
from flops.wheels.wheel_layer import WheelFile

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


class FakeIndex:
    """A simple index with sizes and metadata (PEP 691, PEP 658) whose files can be read by ranges; notes what is fetched."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.fetched: list[str] = []
        self.metadata: dict[str, bytes] = {}
        self.broken_files = False
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.answer(self)

            def log_message(self, *_) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"

    def stop(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()

    def add(
        self, name: str, version: str, *requires: str, modules: tuple[str, ...] = (), size: int = 0, python: str = ""
    ) -> None:
        own = name.replace("-", "_")
        info = f"{own}-{version}.dist-info"
        texts = {f"{module}/__init__.py": "" for module in modules or (own,)}
        texts |= {f"{(modules or (own,))[0]}/data.bin": "0" * size} if size else {}
        texts[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
            [*(f"Requires-Dist: {line}\n" for line in requires), f"Requires-Python: {python}\n" if python else ""]
        )
        texts[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        record = "".join(f"{path},sha256={_hash(text)},{len(text)}\n" for path, text in texts.items())
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for path, text in (texts | {f"{info}/RECORD": record + f"{info}/RECORD,,\n"}).items():
                archive.writestr(path, text)
        self.files[f"{own}-{version}-py3-none-any.whl"] = buffer.getvalue()
        self.metadata[f"{own}-{version}-py3-none-any.whl.metadata"] = texts[f"{info}/METADATA"].encode()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        section, _, rest = request.path.strip("/").partition("/")
        status, kind, headers = 200, "application/octet-stream", {}
        if section == "files" and rest.endswith(".metadata"):
            body = self.metadata[rest]
        elif section == "files" and self.broken_files:
            status, body = 403, b""
        elif section == "files" and (asked := request.headers.get("Range")):
            data = self.files[rest]
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) if last else len(data), len(data) - 1)
            status, body = 206, data[start : end + 1]
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        elif section == "files":
            body = self.files[rest]
            self.fetched.append(rest)
        else:
            names = [file for file in self.files if file.split("-")[0].replace("_", "-") == rest]
            entries = [
                {
                    "filename": file,
                    "url": f"/files/{file}",
                    "hashes": {"sha256": hashlib.sha256(self.files[file]).hexdigest()},
                    "size": len(self.files[file]),
                    "core-metadata": {"sha256": hashlib.sha256(self.metadata[f"{file}.metadata"]).hexdigest()},
                }
                for file in names
            ]
            kind = "application/vnd.pypi.simple.v1+json"
            body = json.dumps({"meta": {"api-version": "1.1"}, "name": rest, "files": entries, "versions": []}).encode()
            status = 200 if names else 404
        request.send_response(status)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(body))} | headers).items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)


def _hash(text: str) -> str:
    import base64

    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


class Recorder(Silent):
    def __init__(self) -> None:
        self.adjustments, self.findings, self.warnings = [], [], []

    def adjusted(self, adjustment) -> None:
        self.adjustments.append(adjustment)

    def finding(self, finding) -> None:
        self.findings.append(finding)

    def warning(self, stage, message, *, hint="") -> None:
        self.warnings.append(message)


@pytest.fixture
def index():
    index = FakeIndex()
    for name in ("numpy", "scipy"):
        index.add(name, "1.0")
    index.add("scikit-learn", "1.4", "numpy", "scipy", modules=("sklearn",), size=2_000_000)
    yield index
    index.stop()


@pytest.fixture
def settings(index, tmp_path):
    return Settings(cache_dir=tmp_path / "cache", data_dir=tmp_path / "data", index_url=index.url, registry=None)


@pytest.fixture
def repository(tmp_path):
    def make(requirements: str, imports: str = "import numpy", platforms=(AMD64,), name: str = "requirements.txt"):
        root = tmp_path / "digits"
        root.mkdir()
        texts = {"model_manager.py": MANAGER.format(imports=imports), "data_manager.py": DATA}
        for path, text in (texts | {name: requirements}).items():
            (root / path).write_text(text)
        for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
            subprocess.run(["git", "-c", "user.name=A", "-c", "user.email=a@x", *words], cwd=root, check=True)
        return Request(source=parse_source(str(root)), platforms=platforms, recipe=Recipe())

    return make


def told(findings):
    return [(one.code, one.where) for one in findings if one.code not in {"PIP_DROPPED", "TEMPLATE_NOT_INHERITED"}]


def test_what_the_code_imports_is_added_without_fetching_a_wheel(index, settings, repository):
    index.add("opencv-python-headless", "4.10", "numpy", modules=("cv2",))
    reporter = Recorder()
    imports = "import os\nimport cv2\nfrom sklearn import svm\ntry:\n    import absent\nexcept ImportError:\n    pass"
    report = check(repository("scikit-learn==1.4\n", imports, (AMD64, ARM64)), settings=settings, reporter=reporter)
    assert [(one.code, one.package, one.after, one.where) for one in report.adjustments] == [
        ("ADDED", "opencv-python-headless", "==4.10", "model_manager.py:2")
    ]
    assert told(report.findings) == []
    names = {"numpy", "opencv-python-headless", "scikit-learn", "scipy"}
    assert {platform: set(lock.versions) for platform, lock in report.locks.items()} == {AMD64: names, ARM64: names}
    assert reporter.adjustments == list(report.adjustments)
    assert index.fetched == []
    assert not (settings.cache_dir / "wheels").exists()


def test_what_nobody_surely_provides_is_a_finding_and_never_added(index, settings, repository):
    index.add("ourtools", "2.0", "numpy")
    index.add("sklearm", "6.6.6")
    imports = "import ourtools.x\nimport sklearm\nimport nowhere\nimport mlflow"
    report = check(repository("scikit-learn\n", imports), settings=settings)
    hints = {one.where: one.hint for one in report.findings if one.code == "IMPORT_MISSING"}
    assert hints.keys() == {"model_manager.py:1", "model_manager.py:2", "model_manager.py:3"}
    assert hints["model_manager.py:1"].startswith("add ourtools==2.0 if that is meant")
    assert hints["model_manager.py:2"].startswith("did you mean sklearn?")
    assert hints["model_manager.py:3"].startswith("add the package that provides nowhere")
    assert ("MLFLOW_IMPORTED", "model_manager.py:4") in told(report.findings)
    assert report.adjustments == ()
    assert all("ourtools" not in lock.versions and "sklearm" not in lock.versions for lock in report.locks.values())


def test_a_module_of_the_repository_is_not_looked_for_on_the_index(index, settings, repository, tmp_path):
    """In a `src/` layout: whoever published a package of that name is not to be proposed."""
    index.add("helpers", "2.0")
    request = repository("numpy\n", "import helpers.metrics")
    (tmp_path / "digits/src/helpers").mkdir(parents=True)
    (tmp_path / "digits/src/helpers/metrics.py").touch()
    (found,) = [one for one in check(request, settings=settings).findings if one.code == "IMPORT_MISSING"]
    assert found.where == "model_manager.py:1"
    assert found.hint == "helpers is in src: move it to the root, which alone is imported from"


def test_a_directory_of_the_repository_that_lacks_the_module_is_no_package(index, settings, repository, tmp_path):
    index.add("data", "2.0", modules=("data/loader",))
    request = repository("numpy\n", "import data.loader")
    (tmp_path / "digits/data").mkdir()
    (tmp_path / "digits/data/train.csv").touch()
    (found,) = [one for one in check(request, settings=settings).findings if one.code == "IMPORT_MISSING"]
    assert found.where == "model_manager.py:1"
    assert found.hint.startswith("data is a directory of the repository that lacks the module loader: commit")


def test_a_python_that_an_imported_package_does_not_foresee_is_told(index, settings, repository):
    index.add("older", "1.0", python=">=3.8,<3.11")
    index.add("newer", "1.0", python=">=3.8,!=3.11.99")
    report = check(repository("older\nnewer\n", "import older, newer"), settings=settings)
    (found,) = [one for one in report.findings if one.code == "PYTHON_NOT_FORESEEN"]
    assert found.where == "requirements.txt:1"
    assert found.message == f"older 1.0 asks for Python >=3.8,<3.11, and Python {report.locks[AMD64].python} is used"


def test_a_package_of_the_name_without_the_module_is_not_proposed(index, settings, repository):
    index.add("thing", "1.0", modules=("another",))
    report = check(repository("numpy\n", "import numpy, thing"), settings=settings)
    (finding,) = [one for one in report.findings if one.code == "IMPORT_MISSING"]
    assert finding.hint.startswith("add the package that provides thing")


def test_an_addition_that_contradicts_a_pin_is_a_finding(index, settings, repository):
    index.add("opencv-python-headless", "4.10", "numpy>=2", modules=("cv2",))
    report = check(repository("numpy==1.0\n", "import numpy, cv2"), settings=settings)
    assert told(report.findings) == [("IMPORT_MISSING", "model_manager.py:1")]
    assert report.findings[-1].hint.startswith("opencv-python-headless provides it and does not lock beside")
    assert report.adjustments == ()


def test_one_that_can_be_added_is_added_beside_one_that_can_not(index, settings, repository):
    index.add("opencv-python-headless", "4.10", "numpy>=2", modules=("cv2",))
    index.add("pillow", "10.0", modules=("PIL",))
    report = check(repository("numpy==1.0\n", "import numpy, cv2\nimport PIL.Image"), settings=settings)
    assert [(one.package, one.where) for one in report.adjustments] == [("pillow", "model_manager.py:2")]
    assert told(report.findings) == [("IMPORT_MISSING", "model_manager.py:1")]


def test_to_a_lock_of_the_repository_nothing_is_added(index, settings, repository):
    index.add("pillow", "10.0", modules=("PIL",))
    index.add("wandb", "0.16")
    lock = 'lock-version = "1.0"\ncreated-by = "test"\n'
    for name in ("numpy-1.0", "wandb-0.16"):
        file = f"{name}-py3-none-any.whl"
        digest = hashlib.sha256(index.files[file]).hexdigest()
        package, _, version = name.partition("-")
        lock += f'[[packages]]\nname = "{package}"\nversion = "{version}"\n'
        lock += f'wheels = [{{ name = "{file}", url = "https://files.example/{file}", size = {len(index.files[file])}, '
        lock += f'hashes = {{ sha256 = "{digest}" }} }}]\n'
    report = check(repository(lock, "import numpy, PIL", name="pylock.toml"), settings=settings)
    assert [lock.versions for lock in report.locks.values()] == [{"numpy": "1.0"}]
    assert [(one.code, one.package) for one in report.adjustments] == [("REMOVED", "wandb")]
    (missing,) = [one for one in report.findings if one.code == "IMPORT_MISSING"]
    assert (missing.where, missing.hint.partition(",")[0]) == ("model_manager.py:1", "add pillow and lock again")


def test_modules_of_one_package_add_it_once_for_the_first(index, settings, repository):
    index.add("matplotlib", "3.8", modules=("matplotlib", "mpl_toolkits"))
    lines = "import numpy\nimport mpl_toolkits.mplot3d\nimport matplotlib.pyplot"
    report = check(repository("numpy\n", lines), settings=settings)
    assert [(one.package, one.where) for one in report.adjustments] == [("matplotlib", "model_manager.py:2")]


def test_strict_names_what_would_be_added(index, settings, repository):
    index.add("pillow", "10.0", modules=("PIL",))
    request = repository("numpy\n", "import numpy\nfrom PIL import Image")
    strict = Request(source=request.source, platforms=request.platforms, recipe=Recipe(policy=Policy.STRICT))
    with pytest.raises(ImportMissing) as caught:
        check(strict, settings=settings)
    assert (caught.value.code, caught.value.exit_code) == ("IMPORT_MISSING", 5)
    assert [(one.where, one.hint) for one in caught.value.findings] == [
        ("model_manager.py:2", "write pillow==10.0 into requirements.txt")
    ]


def test_trackers_are_taken_out_and_told(index, settings, repository):
    index.add("wandb", "0.16")
    index.add("trainer", "1.0", "wandb", modules=("trainer",))
    index.add("clearml", "1.0")
    report = check(
        repository("numpy\nclearml==1.0\ntrainer\n", "import numpy\nimport clearml\nimport wandb"), settings=settings
    )
    assert [(one.code, one.package, one.where) for one in report.adjustments] == [
        ("REMOVED", "clearml", "requirements.txt:2")
    ]
    assert told(report.findings) == [("TRACKER_IMPORTED", "model_manager.py:2"), ("TRACKER", "requirements.txt:3")]
    assert "(trainer -> wandb)" in report.findings[-1].message


def test_files_that_can_not_be_read_cost_the_comparison_only(index, settings, repository):
    index.add("wandb", "0.16")
    request = repository("numpy\n", "import numpy\nimport nowhere")
    index.broken_files = True
    reporter = Recorder()
    report = check(request, settings=settings, reporter=reporter)
    assert report.locks.keys() == {AMD64}
    assert told(report.findings) == []
    assert [text for text in reporter.warnings if text.startswith("imports were not compared")]


def test_a_second_check_needs_no_index(index, settings, repository):
    index.add("pillow", "10.0", modules=("PIL",))
    request = repository("scikit-learn\n", "import PIL, sklearn, nowhere")
    first = check(request, settings=settings).to_json()
    index.stop()
    second = check(request, settings=settings).to_json()
    assert {**first, "seconds": None} == {**second, "seconds": None}


def test_the_report_has_documented_keys_in_json(index, settings, repository):
    document = json.loads(
        json.dumps(check(repository("scikit-learn\n", platforms=(AMD64, ARM64)), settings=settings).to_json())
    )
    assert list(document) == [
        *("repository", "commit", "recipe", "python", "adjustments", "findings", "locks"),
        *("sizes", "accelerator", "rebuild", "seconds"),
    ]
    sizes = {name: len(data) for name, data in index.files.items()}
    assert document["sizes"]["linux/arm64"] == {"packages": 3, "bytes": sum(sizes.values())}
    assert document["accelerator"] == {"wanted": "cpu", "cpu_refusal": "", "cuda": {}}
    assert document["rebuild"]["fetch"] == {"count": 3, "bytes": sum(sizes.values())}
    assert document["rebuild"]["registry"] is None


@pytest.fixture
def shared_cache(tmp_path):
    """Makes what builders share through one registry."""
    with EmbeddedRegistry(tmp_path / "registry") as server:

        @contextmanager
        def make(**options):
            with RegistryClient(server.registry) as client:
                shared = SharedCache(client, server.registry.repository(*REPOSITORY), Silent(), **options)
                yield shared
                shared.close()

        yield make


def test_a_rebuild_takes_only_what_is_not_here(index, settings, repository, tmp_path, shared_cache):
    request = repository("scikit-learn\n")
    lock = check(request, settings=settings).locks[AMD64]
    large = next(layer for layer in ml_layers(lock, "3.11") if layer.wheels[0].name == "scikit-learn")
    (wheel,) = large.wheels
    blobs = BlobStore(settings.cache_dir)
    cache = WheelCache(settings.cache_dir / "wheels")
    for one in lock.wheels:
        if one.name in {"scikit-learn", "numpy"}:
            cache.fetch(one)
    layers = LayerCache(settings.cache_dir / "layers", blobs)
    made = layers.layer_for(
        [WheelFile(path=cache.path(wheel), sha256=wheel.sha256, filename=wheel.filename)],
        prefix=large.prefix,
        python="3.11",
        compression=Compression.GZIP,
    )
    assert layers.known(
        layer_key([wheel.sha256], prefix=large.prefix, python="3.11", compression=Compression.GZIP)
    ) == (
        made.digest,
        made.size,
    )
    rebuild = check(request, settings=settings).preflight.rebuild
    others = [one for one in lock.wheels if one.name != "scikit-learn"]
    assert rebuild.keep == Amount(count=1, bytes=made.size)
    assert rebuild.make.bytes == rebuild.push.bytes == sum(one.size or 0 for one in others)
    assert [rebuild.fetch.count, rebuild.fetch.bytes] == [1, next(one.size for one in others if one.name == "scipy")]

    asked = []

    def holds(repository: str, digest: str) -> bool:
        asked.append((repository, digest))
        return False

    registry = AskedRegistry(name="127.0.0.1:1", holds=holds)
    with_registry = check(request, settings=settings, registry=registry).preflight.rebuild
    assert with_registry.push.bytes == rebuild.push.bytes + made.size
    assert with_registry.keep.count == 0
    assert with_registry.registry == "127.0.0.1:1"
    assert asked[-1] == ("local/digits", made.digest)

    # what another builder recorded is neither fetched nor made nor pushed
    numpy = next(one for one in lock.wheels if one.name == "numpy")
    key = layer_key([numpy.sha256], prefix=large.prefix, python="3.11", compression=Compression.GZIP)
    elsewhere = BlobStore(tmp_path / "elsewhere")
    wheel = WheelFile(path=cache.path(numpy), sha256=numpy.sha256, filename=numpy.filename)
    with shared_cache() as shared:
        other = LayerCache(tmp_path / "elsewhere" / "layers", elsewhere, shared)
        layer = other.layer_for([wheel], prefix=large.prefix, python="3.11", compression=Compression.GZIP)
        other.share(key, layer)
        shared.wait()
    with shared_cache(read_only=True) as shared:
        registry = AskedRegistry(name="127.0.0.1:1", holds=lambda *_: True, shared=shared)
        recorded = check(request, settings=settings, registry=registry).preflight.rebuild
    assert recorded.keep == Amount(count=2, bytes=made.size + layer.size)
    assert recorded.make.bytes == recorded.push.bytes == rebuild.make.bytes - numpy.size


def test_a_check_reports_the_versions_that_a_build_would_take(index, settings, repository, tmp_path, shared_cache):
    """Locks that another builder left in the registry count for both; a check leaves nothing there."""
    request = repository("numpy\n")
    with shared_cache() as shared:
        registry = AskedRegistry(name="127.0.0.1:1", holds=lambda *_: True, shared=shared)
        before = check(request, settings=settings, registry=registry).locks[AMD64]
        shared.wait()
    index.add("numpy", "99.0")
    empty = settings.model_copy(update={"cache_dir": tmp_path / "empty"})
    with shared_cache(read_only=True) as shared:
        registry = AskedRegistry(name="127.0.0.1:1", holds=lambda *_: True, shared=shared)
        after = check(request, settings=empty, registry=registry).locks[AMD64]
        check(replace(request, upgrade=True), settings=empty, registry=registry)
        shared.wait()
        assert shared.uploaded == 0
    assert [wheel.version for wheel in after.wheels] == [wheel.version for wheel in before.wheels]
    newer = settings.model_copy(update={"cache_dir": tmp_path / "alone"})
    assert "99.0" in {wheel.version for wheel in check(request, settings=newer).locks[AMD64].wheels}


def test_a_registry_that_does_not_answer_is_told(index, settings, repository):
    def holds(repository: str, digest: str) -> bool:
        raise RegistryUnreachable("127.0.0.1:1 does not answer")

    reporter = Recorder()
    report = check(
        repository("numpy\n"),
        settings=settings,
        reporter=reporter,
        registry=AskedRegistry(name="127.0.0.1:1", holds=holds),
    )
    assert report.preflight.rebuild.registry is None
    assert reporter.warnings[:1] == ["the registry was not asked what it holds: 127.0.0.1:1 does not answer"]


def test_the_report_is_shown_with_the_largest_first(index, settings, repository, capsys):
    show(check(repository("scikit-learn\n", "import sklearn, nowhere", (AMD64, ARM64)), settings=settings), Silent())
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split()[0] for line in lines if line.split()[:1] in (["scikit-learn"], ["numpy"], ["scipy"])]
    assert shown[0] == shown[3] == "scikit-learn"
    assert any(line.startswith("note[IMPORT_MISSING]") for line in lines)
    assert any(line.startswith("a build would fetch 3 wheels (2.0 MB), make") for line in lines)
    assert "the FL runtime, which was never built here" in " ".join(lines)
