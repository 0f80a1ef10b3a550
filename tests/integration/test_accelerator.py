"""CPU and GPU builds, with uv for real, against an ordinary index and one of CPU builds on loopback."""

from __future__ import annotations

import functools
import hashlib
import io
import threading
import time
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from packaging.requirements import Requirement as Pep508

from flops.formats.requirement import FileHash, Requirement
from flops.formats.requirements import Requirements
from flops.locking.compiler import Compiler
from flops.locking.lock import Lock, LockedWheel, Locker
from flops.locking.pylock import LockTarget
from flops.platforms import Platform
from flops.progress import Silent
from flops.recipe import Accelerator, Recipe
from flops.repair import accelerator, doctor
from flops.repair.doctor import LockRequest
from flops.repair.pythons import PythonChoice

pytestmark = pytest.mark.integration

AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64
BOOKWORM = PythonChoice(version="3.11.2", minor="3.11", glibc=(2, 36), provider="debian", suite="bookworm")
X86, ARM = "manylinux_2_17_x86_64", "manylinux_2_17_aarch64"
NATIVE = (f"cp311-cp311-{X86}", f"cp311-cp311-{ARM}")
#: Nothing listens there.
DEAD = "http://127.0.0.1:9/simple"


class Shelf:
    """A simple index (PEP 503) of small wheels in a directory, served on loopback; notes what it is asked for."""

    def __init__(self, root) -> None:
        root.mkdir()
        self.root = root
        self.asked: list[str] = []
        shelf = self

        class Handler(SimpleHTTPRequestHandler):
            def log_request(self, *_) -> None:
                shelf.asked.append(self.path.strip("/").partition("/")[0])

            def log_message(self, *_) -> None:
                pass

        handler = functools.partial(Handler, directory=str(root))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def add(self, name: str, version: str, *requires: str, tags: tuple[str, ...] = ("py3-none-any",)) -> None:
        info = f"{name.replace('-', '_')}-{version}"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: and-cuda\n"
        metadata += "".join(f"Requires-Dist: {line}\n" for line in requires)
        directory = self.root / name
        directory.mkdir(exist_ok=True)
        for tag in tags:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr(f"{info}.dist-info/METADATA", metadata)
                archive.writestr(f"{info}.dist-info/WHEEL", "Wheel-Version: 1.0\n")
                archive.writestr(f"{info}.dist-info/RECORD", "")
            filename = f"{info}-{tag}.whl"
            (directory / filename).write_bytes(buffer.getvalue())
            digest = hashlib.sha256(buffer.getvalue()).hexdigest()
            with (directory / "index.html").open("a") as page:
                page.write(f'<a href="{filename}#sha256={digest}">{filename}</a><br>\n')


@pytest.fixture
def shelf(tmp_path):
    shelf = Shelf(tmp_path / "ordinary")
    yield shelf
    shelf.stop()


@pytest.fixture
def cpu_builds(tmp_path):
    shelf = Shelf(tmp_path / "cpu")
    yield shelf
    shelf.stop()


def wanted(*lines: str, hashes: tuple[FileHash, ...] = ()) -> Requirements:
    entries = []
    for line, text in enumerate(lines, start=1):
        one = Pep508(text)
        entries.append(
            Requirement(
                name=one.name,
                specifier=str(one.specifier),
                extras=tuple(one.extras),
                marker=str(one.marker or ""),
                path="requirements.txt",
                line=line,
                text=text,
                hashes=hashes,
            )
        )
    return Requirements(path="requirements.txt", python=None, entries=tuple(entries))


def choose(requirements, locker: Locker, *, want=Accelerator.CPU, platforms=(AMD64, ARM64)):
    recipe = Recipe(accelerator=want)
    request = LockRequest(platforms=platforms, pythons=[BOOKWORM], recipe=recipe, reporter=Silent())

    def solve(requirements, locker: Locker):
        return doctor.find_locks(requirements, request, locker=locker)

    return accelerator.choose(requirements, request, locker=locker, solve=solve)


def versions(chosen, *names: str):
    locks = chosen.found.locks
    return {p.architecture: [lock.versions.get(name) for name in names] for p, lock in locks.items()}


@pytest.fixture
def torch(shelf):
    """PyTorch on an ordinary index: for x86-64 with CUDA."""
    shelf.add("numpy", "1.26.4")
    shelf.add("nvidia-cublas-cu12", "12.1")
    shelf.add("triton", "2.1.0")
    cuda = [f"{name} ; platform_machine == 'x86_64'" for name in ("nvidia-cublas-cu12", "triton")]
    shelf.add("torch", "2.1.1", *cuda, tags=NATIVE)
    shelf.add("torchvision", "0.16.1", "torch==2.1.1", "numpy", tags=NATIVE)
    return shelf


@pytest.fixture
def cpu_torch(cpu_builds):
    """What an index of CPU builds has: its own builds, and old copies of other packages."""
    cpu_builds.add("numpy", "1.20.0")
    cpu_builds.add("torch", "2.1.1+cpu", tags=NATIVE[:1])
    cpu_builds.add("torch", "2.1.1", tags=NATIVE[1:])
    cpu_builds.add("torchvision", "0.16.1+cpu", "torch==2.1.1", "numpy", tags=NATIVE[:1])
    cpu_builds.add("torchvision", "0.16.1", "torch==2.1.1", "numpy", tags=NATIVE[1:])
    return cpu_builds


def test_cpu_builds_come_from_their_index_and_nothing_else_does(torch, cpu_torch, tmp_path):
    locker = Locker(tmp_path / "cache", index_url=torch.url, torch_index=cpu_torch.url, retries=0)
    chosen = choose(wanted("torch==2.1.1", "torchvision", "numpy>=1.20"), locker)
    assert versions(chosen, "torch", "torchvision", "numpy", "triton") == {
        "amd64": ["2.1.1+cpu", "0.16.1+cpu", "1.26.4", None],
        "arm64": ["2.1.1", "0.16.1", "1.26.4", None],
    }
    assert (chosen.cpu_refusal, chosen.warning) == ("", "")
    assert chosen.found.findings == ()
    assert "numpy" not in cpu_torch.asked


def test_cpu_builds_are_taken_where_another_package_brings_pytorch(torch, cpu_torch, tmp_path):
    torch.add("trainer", "1.0", "torchvision>=0.1")
    locker = Locker(tmp_path / "cache", index_url=torch.url, torch_index=cpu_torch.url, retries=0)
    chosen = choose(wanted("trainer"), locker)
    assert versions(chosen, "torch", "torchvision")["amd64"] == ["2.1.1+cpu", "0.16.1+cpu"]
    assert chosen.cpu_refusal == ""


def test_an_index_that_does_not_answer_is_told_with_what_images_carry(torch, tmp_path):
    locker = Locker(tmp_path / "cache", index_url=torch.url, torch_index=DEAD, retries=0)
    chosen = choose(wanted("torch==2.1.1", "torchvision"), locker)
    assert versions(chosen, "torch") == {"amd64": ["2.1.1"], "arm64": ["2.1.1"]}
    assert chosen.cuda[AMD64].packages == ("nvidia-cublas-cu12", "triton")
    assert chosen.cuda[ARM64].packages == ()
    assert "Connection refused" in chosen.cpu_refusal
    assert "linux/amd64: " in chosen.warning
    assert "(nvidia-cublas-cu12, triton)" in chosen.warning
    assert "linux/arm64" not in chosen.warning


def test_silence_is_remembered_and_asked_about_again(torch, tmp_path, monkeypatch):
    locker = Locker(tmp_path / "cache", index_url=torch.url, torch_index=DEAD, retries=0)
    target = LockTarget(platform=AMD64, python="3.11.2", glibc=(2, 36))
    reason = locker.cpu_refusal(target)
    assert reason
    with monkeypatch.context() as patch:
        patch.setattr(Compiler, "compile", None)
        assert locker.cpu_refusal(target) == reason
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    monkeypatch.setattr(Compiler, "compile", None)
    with pytest.raises(TypeError):
        locker.cpu_refusal(target)


def test_a_release_without_a_cpu_build_is_taken_as_it_is(torch, cpu_builds, tmp_path):
    cpu_builds.add("torch", "2.5.0+cpu", tags=NATIVE[:1])
    cpu_builds.add("torch", "2.5.0", tags=NATIVE[1:])
    locker = Locker(tmp_path / "cache", index_url=torch.url, torch_index=cpu_builds.url, retries=0)
    chosen = choose(wanted("torch==2.1.1"), locker)
    assert versions(chosen, "torch") == {"amd64": ["2.1.1"], "arm64": ["2.1.1"]}
    assert chosen.cpu_refusal.startswith("they don't lock")
    assert chosen.warning


def test_cuda_keeps_the_ordinary_builds(torch, cpu_torch, tmp_path):
    torch.add("tensorflow", "2.12.0", tags=NATIVE)
    torch.add("tensorflow-cpu", "2.12.0", tags=NATIVE[:1])
    locker = Locker(tmp_path / "cache", index_url=torch.url, torch_index=cpu_torch.url, retries=0)
    chosen = choose(wanted("torch==2.1.1", "tensorflow"), locker, want=Accelerator.CUDA)
    assert versions(chosen, "torch", "tensorflow", "tensorflow-cpu")["amd64"] == ["2.1.1", "2.12.0", None]
    assert (chosen.warning, cpu_torch.asked) == ("", [])
    assert chosen.cuda[AMD64].packages == ("nvidia-cublas-cu12", "triton")


def test_hashes_of_the_ordinary_builds_keep_them(torch, cpu_torch, tmp_path):
    locker = Locker(tmp_path / "cache", index_url=torch.url, torch_index=cpu_torch.url, retries=0)
    hashes = (FileHash(sha256="0" * 64),)
    chosen = accelerator._with_cpu_builds(  # the doctor would refuse the false hash; what counts is the choice
        wanted("torch==2.1.1", hashes=hashes),
        locker,
        [LockTarget(platform=AMD64, python="3.11.2", glibc=(2, 36))],
        lambda requirements, _: doctor.FoundLocks(python=BOOKWORM, locks={}, adjustments=()),
    )
    assert chosen.cpu_refusal == "the repository names the hashes of other builds"
    assert cpu_torch.asked == []


@pytest.fixture
def tensorflow(shelf):
    shelf.add("nvidia-cudnn-cu12", "9.0")
    for version in ("2.12.0", "2.13.0"):
        shelf.add("tensorflow", version, "nvidia-cudnn-cu12 ; extra == 'and-cuda'", tags=NATIVE)
    shelf.add("tensorflow-cpu", "2.12.0", tags=NATIVE[:1])
    return shelf


def test_tensorflow_becomes_its_cpu_build_where_there_is_one(tensorflow, tmp_path):
    locker = Locker(tmp_path / "cache", index_url=tensorflow.url, retries=0)
    chosen = choose(wanted("tensorflow[and-cuda]==2.12.0"), locker)
    names = ("tensorflow", "tensorflow-cpu", "nvidia-cudnn-cu12")
    assert versions(chosen, *names) == {"amd64": [None, "2.12.0", None], "arm64": ["2.12.0", None, None]}
    assert [(one.code, one.before, one.after, one.platform, one.where) for one in chosen.adjustments] == [
        ("CPU_BUILD", "tensorflow==2.12.0", "tensorflow-cpu==2.12.0", "linux/amd64", "requirements.txt:1")
    ]


@pytest.mark.parametrize(
    "lines",
    [
        ("tensorflow==2.13.0",),  # no CPU build of that release
        ("tensorflow",),  # the newest CPU build is older than what arm64 gets
        ("tensorflow==2.12.0", "addons"),  # asks for it by name
    ],
    ids=["no such build", "platforms would differ", "named by another"],
)
def test_tensorflow_stays_where_its_cpu_build_would_change_more(tensorflow, tmp_path, lines):
    tensorflow.add("addons", "1.0", "tensorflow")
    locker = Locker(tmp_path / "cache", index_url=tensorflow.url, retries=0)
    chosen = choose(wanted(*lines), locker)
    assert all("tensorflow" in lock.versions for lock in chosen.found.locks.values())
    assert not any("tensorflow-cpu" in lock.versions for lock in chosen.found.locks.values())
    assert chosen.adjustments == ()


def test_one_platform_needs_no_marker(tensorflow, tmp_path):
    locker = Locker(tmp_path / "cache", index_url=tensorflow.url, retries=0)
    chosen = choose(wanted("tensorflow"), locker, platforms=(AMD64,))
    assert versions(chosen, "tensorflow-cpu") == {"amd64": ["2.12.0"]}
    (entry,) = chosen.requirements.entries
    assert (entry.name, entry.marker) == ("tensorflow-cpu", "")
    arm = choose(wanted("tensorflow==2.12.0"), locker, platforms=(ARM64,))
    assert arm.adjustments == ()


def test_what_a_lock_carries_for_gpus_is_told_by_name():
    wheels = tuple(
        LockedWheel(name=name, version="1", filename=f"{name}.whl", url="http://x", sha256=name, size=size)
        for name, size in (("cuda-bindings", 1), ("numpy", 20), ("nvidia-nccl-cu12", 300), ("triton", 4000))
    )
    found = accelerator.CudaPackages.of(Lock(platform=AMD64, python="3.11.2", wheels=wheels))
    assert found == accelerator.CudaPackages(
        packages=("cuda-bindings", "nvidia-nccl-cu12", "triton"), bytes=4301, total=4321
    )
