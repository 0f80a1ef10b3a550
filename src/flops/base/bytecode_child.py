"""Compile a pack of sources (stdin) to a pack of .pyc files (stdout); runs in the base's interpreter, which may be another
than ours.

A pack is a row of frames. In: 4 bytes path length, 4 bytes source length (little-endian), path, source. Out, in the
same order: 4 bytes length and the .pyc, or 4 bytes of zero where the source can't be compiled.

Only built-in modules are imported, so that each process starts in the same state.
"""

import _frozen_importlib_external
import _imp
import marshal
import sys

#: PEP 552: a hash-based pyc that the import system takes without looking at its source.
UNCHECKED_HASH = (0b01).to_bytes(4, "little")
#: Strings that exist once in a process. marshal marks interned strings, and these become interned when any source uses
#: them as a name, so that the bytes of the sources after it would differ (`"*"` after `from x import *`).
SINGLE = ("", *map(chr, range(256)))


def pyc(path: str, source: bytes) -> bytes:
    """The .pyc of a source, whose tracebacks will name this path; empty where it can't be compiled."""
    try:
        code = compile(source, path, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return b""
    magic: bytes = _frozen_importlib_external.MAGIC_NUMBER
    digest = _imp.source_hash(int.from_bytes(magic, "little"), source)
    return magic + UNCHECKED_HASH + digest + marshal.dumps(code)


def main() -> None:
    for name in SINGLE:
        sys.intern(name)
    pack, output = sys.stdin.buffer, sys.stdout.buffer
    while header := pack.read(8):
        path = pack.read(int.from_bytes(header[:4], "little")).decode()
        compiled = pyc(path, pack.read(int.from_bytes(header[4:], "little")))
        output.write(len(compiled).to_bytes(4, "little") + compiled)
    output.flush()


if __name__ == "__main__":
    main()
