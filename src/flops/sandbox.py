"""Where somebody else's program runs: in bubblewrap's namespaces, fed and read over pipes, within bounds.

Nothing that it wrote is ever opened by name: it has no directory in common with us that it could write to. It sees what is named,
read-only, no network, no devices, and no process but its own.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import select
import signal
import struct
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

from flops.errors import FlopsError, ToolFailed, ToolMissing
from flops.programs import Answer, exchange, find
from flops_wire.flops import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence


#: Limits hold for the process that sets them and for all that it starts, so they are set after the fork and before the exec.
#: A parent that was killed meanwhile had no time to put this one on its lifeline.
_LAUNCHER = """\
import os, resource, sys
if os.getppid() != int(sys.argv[1]):
    sys.exit("its parent is gone")
for pair in sys.argv[2].split(","):
    name, _, value = pair.partition("=")
    hard = int(value) + (name == "CPU")  # at a hard limit of seconds comes SIGKILL, which does not say why
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (int(value), hard))
if user := int(sys.argv[3]):
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
os.execv(sys.argv[4], sys.argv[4:])
"""
_CGROUPS = Path("/sys/fs/cgroup")
#: What counts as memory of a process (proc_pid_status(5)): pages of files on a disk do not.
_STATUS = re.compile(rb"^(RssAnon|RssShmem|VmSwap|Threads):\s+([0-9]+)", re.MULTILINE)
_OUT_OF_MEMORY = re.compile(rb"^oom_kill [1-9]", re.MULTILINE)
#: Bytes that the kernel needs for a file in a tmpfs, however empty.
_FILE = 1024
_SETUP_SECONDS = 10.0


def limited(
    arguments: Sequence[str | Path],
    *,
    memory: int | None = None,
    data: int | None = None,
    processor_seconds: int | None = None,
    file_bytes: int | None = None,
    open_files: int | None = None,
    user: int = 0,
) -> list[str | Path]:
    """The arguments with which we start `arguments` (the first an absolute path) under these limits, for each process.

    Bytes of address space (`memory`), or of what a process itself writes there (`data`); seconds; bytes of any one file; open
    files. `user`: whom root starts it as, in no group of ours.
    """
    limits = {
        "AS": memory,
        "DATA": data,
        "CPU": processor_seconds,
        "FSIZE": file_bytes,
        "NOFILE": open_files,
        "CORE": 0,
    }
    text = ",".join(f"{name}={value}" for name, value in limits.items() if value is not None)
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), text, str(user), *arguments]


@contextmanager
def held(init: int, *, memory: int, processes: int, scratch: bool = False) -> Iterator[Callable[[], None]]:
    """Hold a pid namespace to bytes of memory and a number of threads, all its processes together, and end it at exit.

    `init`, its first process, has started no program yet and is not counted; files in its /tmp count where that is `scratch`.
    Yields what is to be called now and then, and raises ToolFailed where they take more. Besides it hold control groups,
    where we may make some, and RLIMIT_NPROC, which root's processes don't have.
    """
    with ExitStack() as stack:
        groups: list[Path] = []
        stack.callback(_remove, groups)
        try:
            handle = os.pidfd_open(init)
        except ProcessLookupError:  # it has ended already
            yield lambda: None
            return
        stack.callback(os.close, handle)
        stack.callback(_end, handle)
        _group(init, groups, memory=memory, processes=processes + 1)
        release = re.findall("[0-9]+", os.uname().release)
        if [int(number) for number in release[:2]] >= [5, 14]:  # before, it counted the user's processes everywhere
            # it has ended; or it is another user's, and we are a root without CAP_SYS_RESOURCE
            with suppress(ProcessLookupError, PermissionError):
                resource.prlimit(init, resource.RLIMIT_NPROC, (processes + 1, processes + 1))
        if not Path(f"/proc/{init}/task/{init}/children").exists() and not readable(handle, 0):
            raise ToolFailed(
                "this kernel does not tell a process' children, so a confined program can't be held to its bounds"
            )
        yield lambda: _look(init, groups, memory=memory, processes=processes + 1, scratch=scratch)


def _look(init: int, groups: Iterable[Path], *, memory: int, processes: int, scratch: bool) -> None:
    used = threads = 0
    for path in (group / name for group in groups for name in ("memory.oom_control", "memory.events")):
        with suppress(OSError):  # a group has one of the two, by its version; the kernel ended one of its processes
            used += (memory + 1) * bool(_OUT_OF_MEMORY.search(path.read_bytes()))
    place = Path(f"/proc/{init}/root")
    with suppress(OSError):  # not made yet, or ended
        if scratch and place.stat().st_dev != Path("/").stat().st_dev:
            disk = os.statvfs(place / "tmp")
            used = (disk.f_files - disk.f_ffree) * _FILE
    todo = [str(init)]
    while todo:
        process = Path("/proc", todo.pop())
        with suppress(OSError):  # it has just ended
            for kind, number in _STATUS.findall((process / "status").read_bytes()):
                if kind == b"Threads":
                    threads += int(number)
                else:
                    used += int(number) * 1024
            for thread in (process / "task").iterdir():
                todo += (thread / "children").read_text().split()
    if threads > processes:
        raise ToolFailed(f"the confined program started more than {processes - 1} processes and threads")
    if used > memory:
        raise ToolFailed(f"the confined program took more than {memory} bytes of memory")


def _group(init: int, made: list[Path], *, memory: int, processes: int) -> None:
    """Put a process into control groups of its own (version 1 or 2), which are added to `made`, as far as we may make any."""
    ours = Path("/proc/self/cgroup")
    for line in ours.read_text().splitlines() if ours.exists() else ():
        _, kind, own = line.split(":", 2)
        if kind in ("memory", "pids"):
            place = _CGROUPS / kind / own.lstrip("/")
            limit = {"memory.limit_in_bytes": memory} if kind == "memory" else {"pids.max": processes}
        elif not kind and (_CGROUPS / "cgroup.controllers").exists():
            # beside ours: one that has processes can't have groups with limits below it
            place = (_CGROUPS / own.lstrip("/")).parent if own != "/" else _CGROUPS
            limit = {"memory.max": memory, "pids.max": processes}
        else:
            continue
        group = place / f"flops-{os.getpid()}-{init}"
        with suppress(OSError):
            _remove(
                [old for old in place.glob("flops-*-*") if not Path("/proc", old.name.split("-")[1]).exists()], tries=1
            )
            group.mkdir()
            made.append(group)
            for name, value in limit.items():
                (group / name).write_text(str(value))
            (group / "cgroup.procs").write_text(str(init))


def _remove(groups: list[Path], tries: int = 100) -> None:
    for group in groups:
        for _ in range(tries):  # the kernel may still be clearing up after the last process
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.01)


def readable(descriptor: int, seconds: float) -> bool:
    """Wait for something to read; of a pidfd (pidfd_open(2)), for the process' end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _end(handle: int) -> None:
    """End a namespace by its first process, which the kernel lets go last."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    readable(handle, _SETUP_SECONDS)


#: Who a confined program is: nobody inside, and outside too where we are root and what it is to see lies where others may go.
_NOBODY = 65534
#: /proc and / are read-only: as root's process (without capabilities, but the kernel goes by the user) it could write
#: /proc/sys/kernel/core_pattern. There is no /dev: its nodes are this machine's, and their owner may change their modes.
_OPTIONS = (
    *("--unshare-all", "--unshare-user", "--uid", str(_NOBODY), "--gid", str(_NOBODY), "--cap-drop", "ALL"),
    *("--die-with-parent", "--new-session", "--chdir", "/"),
)
_OPEN_FILES = 64
#: Seconds for bubblewrap to begin.
_START_SECONDS = 20
#: System calls that are refused, by their numbers on x86_64 and aarch64.
_REFUSED = (
    # memory that belongs to no process, where nobody would count it: memfd_create, memfd_secret, mq_open, shmget, msgget, semget
    *((319, 279), (447, 447), (240, 180), (29, 194), (68, 186), (64, 190)),
    # namespaces and mounts, whose file systems hold such memory too: mount, unshare, setns, open_tree, move_mount, fsopen,
    # fsmount, mount_setattr, and clone3, whose arguments can't be looked at; programs then use clone
    *((165, 40), (272, 97), (308, 268), (428, 428), (429, 429), (430, 430), (432, 432), (442, 442), (435, 435)),
    # our keyrings, and parts of the kernel that nothing needs here: add_key, request_key, keyctl, bpf, ptrace, perf_event_open,
    # userfaultfd, io_uring_setup
    *((248, 217), (249, 218), (250, 219), (321, 280), (101, 117), (298, 241), (323, 282), (425, 425)),
)
_CLONE, _CLONE_NEWUSER = (56, 220), 0x10000000
#: Column of these numbers, and the kernel's name for the architecture (linux/audit.h).
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a program may take, with all that it starts."""

    seconds: float
    memory: int
    """Bytes; each process' address space has the same bound."""
    processes: int
    """And threads."""
    output: int
    """Bytes of stdout and stderr together."""
    scratch: int = 0
    """Bytes of a /tmp that lives in memory and ends with it; without it there is nowhere to write."""


def available() -> bool:
    """Whether `run` works here: bubblewrap is installed, and this host lets it make namespaces."""
    return _proc(os.geteuid()) is not None


def run(
    command: Sequence[str | Path],
    *,
    seen: Iterable[Path],
    bounds: Bounds,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
) -> Answer:
    """Run a program that sees `seen` (at their own paths) and whose whole environment is `env`; its stderr is fit to be shown.

    ToolTimeout, and ToolFailed where it takes more than its bounds; how it ended else is for the caller to judge.
    """
    seen = tuple(seen)
    users = [_NOBODY] if os.geteuid() == 0 and all(map(_open_to_all, seen)) else []
    for user in (*users, os.geteuid()):
        proc = _proc(user)
        if proc is not None:
            return _run(command, [*_seen(seen), *proc], bounds, user, stdin=stdin, env=env)
    raise ToolMissing("bubblewrap is not installed, or this host forbids namespaces", hint="install bubblewrap")


@cache
def _proc(user: int) -> tuple[str, ...] | None:
    """The options for a /proc in such a user's sandbox: none in some containers; None where no program can be confined."""
    bounds = Bounds(seconds=_START_SECONDS, memory=1 << 30, processes=8, output=1 << 16)
    for proc in (("--proc", "/proc", "--remount-ro", "/proc"), ()):
        with suppress(FlopsError, OSError):
            if _run(["/bin/true"], [*_seen([Path("/")]), *proc], bounds, user).code == 0:
                return proc
    return None


def _seen(paths: Iterable[Path]) -> Iterator[str | Path]:
    for path in paths:
        yield from ("--ro-bind", path, path)


def _open_to_all(path: Path) -> bool:
    place = path.resolve()
    needed = 0o5 if place.is_dir() else 0o4
    return place.stat().st_mode & needed == needed and all(one.stat().st_mode & 0o1 for one in place.parents)


def _run(
    command: Sequence[str | Path],
    mounts: Iterable[str | Path],
    bounds: Bounds,
    user: int,
    *,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
) -> Answer:
    with ExitStack() as stack:
        (info, told), (gate, go), (rules, written) = (_pipe(stack) for _ in range(3))
        written.write(_filter())
        written.close()
        words: list[str | Path] = [find("bwrap"), *_OPTIONS]
        if bounds.scratch:
            words += ["--size", str(bounds.scratch), "--tmpfs", "/tmp"]  # noqa: S108 - its own
        words += [*mounts, "--remount-ro", "/"]
        for option, file in (("--info-fd", told), ("--block-fd", gate), ("--seccomp", rules)):
            words += [option, str(file.fileno())]

        def begin() -> Callable[[], None]:
            for file in (told, gate, rules):
                file.close()
            init = _first_process(info)
            if init is None:  # bubblewrap says why
                return lambda: None
            look = stack.enter_context(
                held(init, memory=bounds.memory, processes=bounds.processes, scratch=bool(bounds.scratch))
            )
            with suppress(BrokenPipeError):
                go.write(b"1")
            return look

        answer = exchange(
            limited(
                [*words, "--", *command],
                memory=bounds.memory,
                processor_seconds=int(bounds.seconds) + 1,
                open_files=_OPEN_FILES,
                user=0 if user == os.geteuid() else user,
            ),
            stdin=stdin,
            seconds=bounds.seconds,
            output=bounds.output,
            env=env or {},
            descriptors=[file.fileno() for file in (told, gate, rules)],
            begin=begin,
        )
    return replace(answer, stderr=visible(answer.stderr))


def _pipe(stack: ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    reader, writer = os.pipe()
    return stack.enter_context(open(reader, "rb", 0)), stack.enter_context(open(writer, "wb", 0))  # noqa: PTH123


def _first_process(info: IO[bytes]) -> int | None:
    """The first process of the new namespaces, which waits; None where bubblewrap made none."""
    told = b""
    while not told.endswith(b"}\n"):
        piece = info.read(1024) if readable(info.fileno(), _START_SECONDS) else b""
        if not piece:
            return None
        told += piece
    return int(json.loads(told)["child-pid"])


def _filter() -> bytes:
    """A filter (seccomp(2), classic BPF) that answers a refused call as a kernel does that has it not."""
    try:
        column, machine = _MACHINES[os.uname().machine]
    except KeyError:
        raise ToolFailed(f"programs can't be confined on {os.uname().machine}") from None
    load, equal, least, bits, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    refused = [(equal, numbers[column]) for numbers in _REFUSED]
    refused.append((least, 0x40000000))  # other calls by the same numbers (x32)
    last = len(refused) + 7
    rules = [(load, 0, 0, 4), (equal, 0, last - 2, machine), (load, 0, 0, 0)]
    rules += [(test, last - place - 1, 0, number) for place, (test, number) in enumerate(refused, len(rules))]
    rules += [(equal, 0, 2, _CLONE[column]), (load, 0, 0, 16), (bits, 1, 0, _CLONE_NEWUSER)]
    rules += [(answer, 0, 0, 0x7FFF0000), (answer, 0, 0, 0x00050000 | errno.ENOSYS)]
    return b"".join(struct.pack("=HBBI", *rule) for rule in rules)
