"""A layer's diff id from its bytes: the digest of its tar, however it is compressed."""

from __future__ import annotations

import gzip
import hashlib
from typing import IO, TYPE_CHECKING, BinaryIO, cast

import zstandard
from isal import igzip, isal_zlib

from flops.errors import BadImage

if TYPE_CHECKING:
    from pathlib import Path

_PIECE = 1024 * 1024
_BROKEN: tuple[type[Exception], ...] = (
    gzip.BadGzipFile,
    isal_zlib.error,  # type: ignore[assignment]
    zstandard.ZstdError,
    EOFError,
)


def diff_id(path: Path, media_type: str, *, most: int) -> str:
    """`sha256:` and 64 digits; BadImage where it can't be decompressed, or has more than `most` bytes then."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as blob, _inflated(blob, media_type) as stream:
            while piece := stream.read(_PIECE):
                size += len(piece)
                if size > most:
                    raise BadImage(f"a layer has more than the {most} bytes that were told")
                digest.update(piece)
    except _BROKEN as error:
        raise BadImage("a layer can't be decompressed") from error
    return "sha256:" + digest.hexdigest()


def _inflated(blob: BinaryIO, media_type: str) -> IO[bytes]:
    if media_type.endswith("gzip"):
        return cast("IO[bytes]", igzip.IGzipFile(fileobj=blob, mode="rb"))  # type: ignore[no-untyped-call]
    if media_type.endswith("zstd"):
        return cast("IO[bytes]", zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True))
    return blob
