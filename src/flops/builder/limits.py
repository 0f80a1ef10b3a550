"""Bounds for a program that reads what others wrote, or that others wrote.

`limited` sets resource limits, in a child of ours that then becomes the program: each process has them for itself. `held` is for
a whole pid namespace, whatever its processes do.
"""

from __future__ import annotations

import os
import re
import resource
import select
import signal
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flops.errors import ToolFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

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
