"""The only place that starts a program: a deadline, a scrubbed environment, its own process group, bounded output.

Whatever `run` and `Running` start ends with us, even where we are killed (`lifeline`); what `detach` starts outlives us.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import selectors
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, cast

from flops import lifeline
from flops.errors import Cancelled, ToolFailed, ToolMissing, ToolTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

#: What a child may see of our own environment; all else is given by name.
INHERITED = (
    "PATH",
    "TMPDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "FLOPS_JOB_ID",
)
#: Bytes of each of a child's outputs; one that writes more is ended.
OUTPUT_LIMIT = 16 * 1024 * 1024
#: Seconds between two looks at a program that `exchange` talks to.
LOOK_SECONDS = 0.02
_PIECE = 64 * 1024
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
#: Seconds between two looks at what a program has done that `run` waits for.
LOOK = 0.1
#: Bytes of one line of a program that is followed; a longer line arrives in pieces.
LINE_LIMIT = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Completed:
    """How a program ended. `code` is its exit code, negative for a signal."""

    arguments: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    cut: bool = False
    """Whether an output reached OUTPUT_LIMIT: the program was ended for it, and what is here is the beginning."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back over a program's pipes. `code` as in `Completed`."""

    code: int
    stdout: bytes
    stderr: str


_running: set[subprocess.Popen[bytes]] = set()
_cancelled = threading.Event()
#: Not to be forgotten before they have ended: somebody has to take away what an ended child leaves.
_detached: set[subprocess.Popen[bytes]] = set()


def cancel() -> None:
    """End every program that `run` waits for, and let nothing begin: this process is about to end."""
    _cancelled.set()
    for child in list(_running):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)


def check_cancelled(*, unless: bool = False) -> None:
    """Cancelled after `cancel`; long work that starts no program asks now and then."""
    if _cancelled.is_set() and not unless:
        raise Cancelled("interrupted")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The allow-listed part of our environment, LANG=C.UTF-8, and what the caller adds."""
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return {**kept, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **(extra or {})}


def find(program: str) -> str:
    """The program's path; ToolMissing where it is not on this machine."""
    path = shutil.which(program)
    if path is None:
        raise ToolMissing(f"{program} is not installed", hint=f"install {program} and see that it is on PATH")
    return path


def run(
    arguments: Sequence[str | Path],
    *,
    seconds: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    check: bool = True,
    errors: str = "replace",
    watch: Callable[[], None] | None = None,
    cancelled: bool = False,
) -> Completed:
    """Run a program to its end or its deadline (in seconds), in a process group of its own that is killed with it.

    `env` is added to the allow-listed environment. `errors` says how stdout is decoded; `surrogateescape` keeps each byte.
    What `watch`, called again and again, raises ends the program. With `cancelled`, it runs after `cancel` too: to take away
    what is left.
    ToolMissing, ToolTimeout; ToolFailed where `check` and the code is not 0 or an output was cut.
    """
    words = tuple(str(argument) for argument in arguments)
    words = (find(words[0]) if "/" not in words[0] else words[0], *words[1:])
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as feed:
        feed.write((stdin or "").encode())
        feed.seek(0)
        with _started(
            words, unless=cancelled, stdin=feed, stdout=out, stderr=err, env=environment(env), cwd=cwd
        ) as child:
            try:
                _wait(child, seconds, (out, err), watch)
            except subprocess.TimeoutExpired:
                raise ToolTimeout(f"{Path(words[0]).name} did not end within {seconds:.0f} s") from None
        cut = _is_long(out, err)
        done = Completed(arguments=words, code=child.returncode, stdout=_text(out, errors), stderr=_text(err), cut=cut)
    if check and cut:
        raise ToolFailed(f"{Path(words[0]).name} was ended: it wrote more than {OUTPUT_LIMIT >> 20} MB")
    if check and done.code != 0:
        raise ToolFailed(f"{Path(words[0]).name} ended with {done.code}: {last_line(done.stderr)}")
    return done


def last_line(stderr: str) -> str:
    """What a program that failed says of it."""
    return (stderr.strip().splitlines()[-1:] or ["no message"])[0][:500]


def exchange(
    arguments: Sequence[str | Path],
    *,
    stdin: bytes,
    seconds: float,
    output: int,
    env: Mapping[str, str],
    descriptors: Sequence[int] = (),
    begin: Callable[[], Callable[[], None]] | None = None,
) -> Answer:
    """Run a program that is fed and read over pipes. ToolFailed beyond `output` bytes of both its outputs, ToolTimeout.

    `env` is its whole environment. `begin` is called once it runs, and what that returns every LOOK_SECONDS and at
    the end: whatever either raises ends the program.
    """
    words = [str(argument) for argument in arguments]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with _started(words, **pipes, env=dict(env), cwd="/", pass_fds=descriptors) as child:
        look = begin() if begin else lambda: None
        code, out, err = _talk(child, stdin, seconds, output, look)
        look()
    return Answer(code=code, stdout=out, stderr=err.decode("utf-8", "replace"))


def _talk(
    child: subprocess.Popen[bytes], stdin: bytes, seconds: float, limit: int, look: Callable[[], None]
) -> tuple[int, bytes, bytes]:
    """Feed and read a program until it has closed its outputs and ended."""
    out, err = bytearray(), bytearray()
    end, next_look = time.monotonic() + seconds, 0.0
    with selectors.DefaultSelector() as selector:
        for stream, data in ((child.stdin, memoryview(stdin)), (child.stdout, out), (child.stderr, err)):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, _WRITE if stream is child.stdin else _READ, data)
        while selector.get_map() or child.poll() is None:
            if time.monotonic() > end:
                raise ToolTimeout(f"the program did not end within {seconds:.0f} s")
            if time.monotonic() >= next_look:
                look()
                next_look = time.monotonic() + LOOK_SECONDS
            if not selector.get_map():  # all is read, and it goes on
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(LOOK_SECONDS)
                continue
            for key, _ in selector.select(LOOK_SECONDS):
                _move(selector, key)
            if len(out) + len(err) > limit:
                raise ToolFailed(f"the program wrote more than {limit} bytes")
    return child.wait(), bytes(out), bytes(err)


def _move(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    """Write a piece to a pipe (`data`: what is left to write), or read one; a pipe that is done is closed."""
    if isinstance(key.data, bytearray):
        piece = os.read(key.fd, _PIECE)
        key.data.extend(piece)
        more = bool(piece)
    else:
        try:
            left = key.data[os.write(key.fd, key.data[:_PIECE]) :]
        except BrokenPipeError:  # it wants no more
            left = key.data[:0]
        selector.modify(key.fileobj, key.events, left)
        more = bool(left)
    if not more:
        selector.unregister(key.fileobj)
        cast("IO[bytes]", key.fileobj).close()


class Running:
    """A program that is followed while it runs: each line of its output (both streams) goes to `on_line`, from a thread.

    Use as a context manager: at exit the program's whole process group is gone.
    """

    def __init__(
        self, arguments: Sequence[str | Path], *, on_line: Callable[[str], None], env: Mapping[str, str] | None = None
    ) -> None:
        words = [str(argument) for argument in arguments]
        self._name = Path(words[0]).name
        self._child = subprocess.Popen(
            [find(words[0]), *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(env),
            start_new_session=True,
        )
        lifeline.add(self._child.pid)
        self._reader = threading.Thread(target=self._read, args=(on_line,), daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _kill_group(self._child)
        self._reader.join(timeout=5)
        if self._child.stdout is not None:
            self._child.stdout.close()

    @property
    def code(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._child.poll()

    def wait(self, seconds: float) -> int:
        """The exit code; ToolTimeout after that many seconds."""
        try:
            code = self._child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise ToolTimeout(f"{self._name} did not end within {seconds:.0f} s") from None
        self._reader.join(timeout=5)
        return code

    def interrupt(self) -> None:
        """Ask the program to end (SIGTERM), without waiting."""
        with contextlib.suppress(ProcessLookupError):
            self._child.terminate()

    def _read(self, on_line: Callable[[str], None]) -> None:
        stream = self._child.stdout
        while stream is not None and (line := stream.readline(LINE_LIMIT)):
            on_line(line.decode("utf-8", "replace").rstrip("\r\n"))


@dataclass(frozen=True, kw_only=True)
class ProcessLimits:
    """What a detached program and all that it starts may take of the machine."""

    memory: int | None = None
    """Bytes of data (RLIMIT_DATA) of each single process."""
    files: int = 4096
    """Open at once."""
    niceness: int = 10
    oom_score: int = 500
    """Where memory runs out, the kernel takes it before whatever has less (proc(5), oom_score_adj)."""


class Detached:
    """A program that outlives this process."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child

    @property
    def pid(self) -> int:
        return self._child.pid

    def poll(self) -> int | None:
        """As a shell has it: the exit code, 128 + signal, or None while it runs. Takes away what is left of an ended one."""
        code = self._child.poll()
        if code is None:
            return None
        _detached.discard(self._child)
        return code if code >= 0 else 128 - code


def detach(
    arguments: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    output: Path,
    cwd: Path,
    limits: ProcessLimits | None = None,
) -> Detached:
    """Start a program in a session of its own that nobody waits for: stdin empty, both outputs added to a file.

    `env` is its whole environment. ToolMissing; OSError where `output` can't be written.
    """
    words = [str(argument) for argument in arguments]
    # appending, so that the file may be shortened while the program writes
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = subprocess.Popen(
            [find(words[0]) if "/" not in words[0] else words[0], *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    except (FileNotFoundError, PermissionError) as error:
        raise ToolMissing(f"{words[0]} can't be started: {error.strerror}") from error
    finally:
        os.close(descriptor)
    _detached.add(child)
    if limits is not None:
        confine(child.pid, limits)
    return Detached(child)


def confine(pid: int, limits: ProcessLimits) -> None:
    """Hold a running process of ours to its limits, and what it starts from now on; one that has just ended is none."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.setpriority(os.PRIO_PROCESS, pid, max(limits.niceness, os.getpriority(os.PRIO_PROCESS, pid)))
        score = Path(f"/proc/{pid}/oom_score_adj")
        with contextlib.suppress(PermissionError):  # it has just ended: what is left of it in /proc is root's (proc(5))
            score.write_text(str(max(limits.oom_score, int(score.read_text()))))
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        _lower(pid, resource.RLIMIT_NOFILE, limits.files)
        if limits.memory is not None:
            _lower(pid, resource.RLIMIT_DATA, limits.memory)


@contextlib.contextmanager
def _started(words: Sequence[str], *, unless: bool = False, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a session of its own, which ends with us, by `cancel`, and at exit with all that it started."""
    check_cancelled(unless=unless)
    try:
        child = subprocess.Popen(words, start_new_session=True, **options)
    except (FileNotFoundError, PermissionError) as error:
        raise ToolMissing(f"{words[0]} can't be started: {error.strerror}") from error
    lifeline.add(child.pid)
    _running.add(child)
    try:
        check_cancelled(unless=unless)
        yield child
    finally:
        _running.discard(child)
        _kill_group(child)
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()
    check_cancelled(unless=unless)


def _lower(pid: int, kind: int, value: int) -> None:
    _, hard = resource.prlimit(pid, kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.prlimit(pid, kind, (value, value))


def _wait(
    child: subprocess.Popen[bytes], seconds: float, outputs: Sequence[IO[bytes]], watch: Callable[[], None] | None
) -> None:
    """Return as soon as the child has ended or has written too much; `Popen.wait` looks only every 50 ms. TimeoutExpired."""
    deadline = time.monotonic() + seconds
    with _watched(child) as ended:
        while not ended(min(LOOK, max(0.0, deadline - time.monotonic()))):
            if _is_long(*outputs):
                return
            if watch is not None:
                watch()
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(child.args, seconds)


@contextlib.contextmanager
def _watched(child: subprocess.Popen[bytes]) -> Iterator[Callable[[float], bool]]:
    """A function that waits some seconds for the child's end, and says whether it has come."""
    try:
        descriptor = os.pidfd_open(child.pid)
    except (AttributeError, OSError):  # not Linux, or a sandbox that forbids it
        yield lambda seconds: _ends(child, seconds)
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        yield lambda seconds: bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)


def _ends(child: subprocess.Popen[bytes], seconds: float) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=seconds)
    return child.returncode is not None


def _is_long(*outputs: IO[bytes]) -> bool:
    return any(os.fstat(output.fileno()).st_size > OUTPUT_LIMIT for output in outputs)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """Nothing that a program started outlives it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    lifeline.drop(child.pid)
    child.wait()


def _text(file: IO[bytes], errors: str = "replace") -> str:
    file.seek(0)
    return file.read(OUTPUT_LIMIT).decode("utf-8", errors)
