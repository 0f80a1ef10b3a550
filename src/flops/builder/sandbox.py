"""Where somebody else's program runs: in bubblewrap's namespaces, fed and read over pipes, within bounds.

Nothing that it wrote is ever opened by name: it has no directory in common with us that it could write to. It sees what is named,
read-only, no network, no devices, and no process but its own.
"""

from __future__ import annotations

import errno
import json
import os
import struct
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

from flops.builder.limits import held, limited, readable
from flops.errors import FlopsError, ToolFailed, ToolMissing
from flops.process import Answer, exchange, find
from flops_wire.flops import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

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
