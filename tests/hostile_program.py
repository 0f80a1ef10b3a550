"""A program that attacks whoever starts it, for every test of a place where foreign programs run.

`python hostile_program.py ATTACK ARGUMENTS` tries one attack, bounded so that it hurts nobody where it succeeds, and prints what
it reached, each on a line of its own; nothing where it reached nothing. It imports nothing of ours.
"""

import contextlib
import ctypes
import glob
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

MIB = 1024 * 1024
LIBC = ctypes.CDLL(None, use_errno=True)


def reach(what):
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def read(path):
    """A file of the host: its text."""
    reach(Path(path).read_text(errors="replace"))


def overwrite(path):
    """A file of the host."""
    Path(path).write_text("overwritten")


def environments():
    """What other processes were started with."""
    for path in glob.glob("/proc/[0-9]*/environ"):
        if Path(path).parent.name != str(os.getpid()):
            with contextlib.suppress(OSError):
                reach(Path(path).read_bytes())


def process(pid):
    """A process of the host: to signal it, to trace it, to read its memory."""
    os.kill(int(pid), 0)
    reach("signal")
    with contextlib.suppress(OSError):
        os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))
        reach("memory")
    seize = 0x4206
    if LIBC.ptrace(seize, int(pid), None, None) == 0:
        reach("trace")


def sockets(port, name):
    """A listener of the host, by its port and by its abstract name."""
    for family, address in ((socket.AF_INET, ("127.0.0.1", int(port))), (socket.AF_UNIX, "\0" + name)):
        with socket.socket(family) as client, contextlib.suppress(OSError):
            client.settimeout(5)
            client.connect(address)
            reach("connected")


def kernel():
    """What root alone may change of the kernel: opened, not written."""
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger"):
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY))
            reach(path)


def things(*places):
    """Things to be found by whoever opens what lies there: links, FIFOs, sockets, hard links, devices, files."""

    def listen(path):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)

    makers = {
        "link": lambda path: os.symlink("/etc/passwd", path),
        "fifo": os.mkfifo,
        "socket": listen,
        "hardlink": lambda path: os.link(__file__, path),
        "device": lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
        "file": lambda path: Path(path).touch(),
    }
    for place in places:
        for name, make in makers.items():
            with contextlib.suppress(OSError):
                make(f"{place}/{name}")
                reach(f"{place}/{name}")


def modes(*paths):
    """A device of the host, which its owner's processes may change the mode of."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.chmod(path, stat.S_IMODE(os.stat(path).st_mode))
            reach(path)


def calls():
    """Calls that hold memory which is no process's, or reach the kernel where nobody needs it."""
    numbers = {"memfd_create": (319, 279), "shmget": (29, 194), "keyctl": (250, 219), "unshare": (272, 97)}
    column = os.uname().machine == "aarch64"
    arguments = {
        "memfd_create": (b"x", 0),
        "shmget": (0, 4096, 0o1600),
        "keyctl": (0, -3, 1),  # the session's keyring
        "unshare": (0x10000000,),
    }
    for name, number in numbers.items():
        if LIBC.syscall(number[column], *arguments[name]) >= 0:
            reach(name)


def files(place, number):
    """Many empty files."""
    made = 0
    try:
        for made in range(1, int(number) + 1):
            os.close(os.open(f"{place}/{made}", os.O_CREAT | os.O_WRONLY))
    finally:
        reach(made)


def fill(place, size):
    """Two large files."""
    done = 0
    try:
        for name in ("one", "other"):
            with open(f"{place}/{name}", "wb", buffering=0) as file:
                for _ in range(int(size) // MIB // 2):
                    done += file.write(bytes(MIB))
    finally:
        reach(done)


def descriptors(number):
    """Many open files, each of which may hold memory of the kernel's."""
    opened = 0
    with contextlib.suppress(OSError):
        while opened < int(number):
            os.dup(0)
            opened += 1
    reach(opened)


def forks(number, seconds):
    """Many processes, each of which lives for some seconds."""
    made = 0
    with contextlib.suppress(OSError):
        while made < int(number):
            if os.fork() == 0:
                time.sleep(float(seconds))
                os._exit(0)
            made += 1
    reach(made)
    time.sleep(float(seconds))


def memory(processes, size):
    """Some processes that each hold so many bytes."""
    held = b""
    with contextlib.suppress(MemoryError):
        for _ in range(int(processes) - 1):
            if os.fork() == 0:
                break
        held = bytearray(b"x") * int(size)
    reach(len(held))
    time.sleep(3 if int(processes) > 1 else 0)


def endless():
    while True:
        os.write(1, bytes(65536))


def stay(seconds, mark):
    """A process of its own session that keeps none of our files, and goes on beyond its parent's end."""
    program = "import sys, time; time.sleep(float(sys.argv[1]))"
    subprocess.Popen(
        [sys.executable, "-S", "-c", program, seconds, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    reach("started")


def sleep(seconds, mark=""):
    time.sleep(float(seconds))


def look():
    """What it was given: open files, variables, users, a right of root's."""
    opened = []
    for number in range(64):
        with contextlib.suppress(OSError):
            os.fstat(number)
            opened.append(number)
    reach(opened)
    reach(sorted(set(os.environ) - {"LC_CTYPE", "PWD"}))
    reach((os.getuid(), os.getgid()))
    os.chroot("/")
    reach("chroot")


def terminal():
    """Escapes that a terminal would obey."""
    sys.stderr.write("\x1b]0;title\x07\x1b[2J\x9b31m\u202eend\n")
    sys.exit(3)


if __name__ == "__main__":
    with contextlib.suppress(OSError, MemoryError):
        globals()[sys.argv[1]](*sys.argv[2:])
