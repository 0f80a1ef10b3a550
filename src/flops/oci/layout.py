"""OCI image layouts (image-spec 1.1, image-layout.md): directories and archives of images that other programs read."""

from __future__ import annotations

import fcntl
import io
import os
import secrets
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

from flops.errors import BadImage, OutputError
from flops.oci import tar
from flops.oci.artifacts import parse_artifact
from flops.oci.blobs import BlobStore, digest_hex, disk_errors, named_digests, sha256
from flops.oci.image import REFERENCE_NAME, Descriptor, index_document, parse_index
from flops.oci.manifests import Manifest
from flops.oci.reference import Registry, is_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from flops.oci.image import ImageIndex


__all__ = ["BlobStore", "Layout", "Referrer", "write_archive"]

MARKER = b'{"imageLayoutVersion":"1.0.0"}'
_COPY = 1024 * 1024
#: Bytes; a larger blob is no manifest.
_DOCUMENT = 8 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Referrer:
    """A manifest that has an image as its subject, with the documents that it names."""

    descriptor: Descriptor
    documents: tuple[bytes, ...]
    """Its own among them."""


class Layout:
    """A directory of images by name. Several processes may write to it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = BlobStore(root)
        self._held = False

    def write(
        self, reference_name: str, index: ImageIndex, source: BlobStore, referrers: Sequence[Referrer] = ()
    ) -> None:
        """Put an image under a name, in place of what had it; layers are linked or copied from `source`.

        Its referrers stand in index.json without a name; those of images that no name stands for any more go from there.

        OutputError where the directory can't be written, DiskFull, BadImage for a layer that is not what it should be.
        """
        with _output_errors(self.root):
            for layer in index.layers:
                self.blobs.take(layer.digest, source)
            for document in (*index.documents(), *(one for referrer in referrers for one in referrer.documents)):
                self.blobs.put(document)
            with self.writing():
                named = self.references() | {reference_name: index.descriptor}
                self._replace(named, [one.descriptor for one in referrers])

    def unname(self, repository: str, digest: str) -> bool:
        """Take what stands under any name REPOSITORY:TAG away from there, with its referrers; whether anything did. OutputError, DiskFull."""
        with self.writing(), _output_errors(self.root):
            named = self.references()
            left = {
                name: entry
                for name, entry in named.items()
                if entry.digest != digest or name.rpartition(":")[0] != repository
            }
            if len(left) == len(named):
                return False
            self._replace(left, ())
            return True

    def collect(self, seconds: float) -> int:
        """Remove blobs that nothing in index.json reaches and that came longer ago; the bytes that this freed. OutputError.

        A blob that a cache has too (a hard link) frees nothing.
        """
        freed, before = 0, time.time() - seconds
        with self.writing(), _output_errors(self.root):
            held = self._reached()
            for path in (self.root / "blobs" / "sha256").glob("*"):
                there = path.stat()
                if path.name not in held and max(there.st_mtime, there.st_ctime) < before:
                    path.unlink()
                    freed += there.st_size if there.st_nlink == 1 else 0
        return freed

    def _reached(self) -> set[str]:
        """The hexadecimal digits of every digest in index.json, and in the documents that these name."""
        found: set[str] = set()
        todo = {entry.digest for entry in self._entries()}
        while todo:
            digest = todo.pop()
            found.add(digest_hex(digest))
            if (size := self.blobs.size(digest)) is not None and size <= _DOCUMENT:
                todo |= {one for one in named_digests(self.blobs.read(digest)) if digest_hex(one) not in found}
        return found

    def references(self) -> dict[str, Descriptor]:
        """The images by name; empty where there is no layout yet."""
        return {name: entry for entry in self._entries() if (name := _name(entry))}

    def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        """The manifests that have this one as their subject."""
        return tuple(entry for entry, subject in self._referrers() if subject == digest)

    def _referrers(self) -> Iterator[tuple[Descriptor, str]]:
        for entry in self._entries():
            if entry.artifact_type and not _name(entry):
                with suppress(BadImage, FileNotFoundError):
                    subject = parse_artifact(self.blobs.read(entry.digest)).subject
                    yield entry, subject.digest if subject is not None else ""

    def _replace(self, named: Mapping[str, Descriptor], referrers: Iterable[Descriptor]) -> None:
        """Write index.json: these names, and what has none already, but for referrers of what is not named any more."""
        unnamed = {entry.digest: entry for entry in self._entries() if not _name(entry)}
        standing = {entry.digest for entry in named.values()} | unnamed.keys()
        for entry, subject in self._referrers():
            if subject and subject not in standing:
                unnamed.pop(entry.digest, None)
        unnamed |= {entry.digest: entry for entry in referrers}
        _replace(self.root / "index.json", _index_json(named, unnamed.values()))

    def _entries(self) -> tuple[Descriptor, ...]:
        try:
            return parse_index((self.root / "index.json").read_bytes()).manifests
        except FileNotFoundError:
            return ()

    def read(self, reference_name: str) -> Descriptor | None:
        """What a name stands for; the documents lie in `blobs`."""
        return self.references().get(reference_name)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One writer at a time, from what it reads first to what it writes last; the marker file, which never changes, carries the lock.

        OutputError where the directory can't be written, DiskFull.
        """
        if self._held:
            yield
            return
        with ExitStack() as stack:
            with _output_errors(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
                marker = stack.enter_context((self.root / "oci-layout").open("ab"))
                fcntl.flock(marker, fcntl.LOCK_EX)
                if os.fstat(marker.fileno()).st_size == 0:
                    marker.write(MARKER)
                    marker.flush()
            self._held = True
            try:
                yield
            finally:
                self._held = False


def write_archive(
    path: Path, images: Mapping[str, ImageIndex], source: BlobStore, referrers: Sequence[Referrer] = ()
) -> None:
    """Write a layout as one tar file, the same bytes for the same images; streamed, and in place only when whole.

    OutputError where the file can't be written, DiskFull, BadImage for a layer whose size is wrong.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with _output_errors(path):
        try:
            with temporary.open("xb") as file:
                _write_entries(file, images, source, referrers)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _write_entries(
    file: BinaryIO, images: Mapping[str, ImageIndex], source: BlobStore, referrers: Sequence[Referrer]
) -> None:
    documents = {sha256(document): document for index in images.values() for document in index.documents()}
    documents |= {sha256(document): document for referrer in referrers for document in referrer.documents}
    layers = {layer.digest: layer.size for index in images.values() for layer in index.layers}
    directories = ("blobs", "blobs/sha256")
    file.writelines(tar.header(name, kind=tar.EntryType.DIRECTORY, mode=0o755, mtime=0) for name in directories)
    for digest in sorted(documents.keys() | layers.keys()):
        name = "blobs/" + digest.replace(":", "/")
        if digest in documents:
            _write_file(file, name, io.BytesIO(documents[digest]), len(documents[digest]))
        else:
            with source.open(digest) as blob:
                _write_file(file, name, blob, layers[digest])
    named = {name: index.descriptor for name, index in images.items()}
    index_json = _index_json(named, [referrer.descriptor for referrer in referrers])
    _write_file(file, "index.json", io.BytesIO(index_json), len(index_json))
    _write_file(file, "oci-layout", io.BytesIO(MARKER), len(MARKER))
    file.write(tar.END)


def _write_file(file: BinaryIO, name: str, content: BinaryIO, size: int) -> None:
    file.write(tar.header(name, kind=tar.EntryType.FILE, mode=0o644, mtime=0, size=size))
    left = size
    while piece := content.read(_COPY):
        left -= len(piece)
        file.write(piece)
    if left:
        raise BadImage(f"the blob {name} does not have the {size} bytes that its manifest says")
    file.write(tar.padding(size))


def _index_json(named: Mapping[str, Descriptor], unnamed: Iterable[Descriptor]) -> bytes:
    entries = [
        replace(entry, annotations={**entry.annotations, REFERENCE_NAME: name} if name else entry.annotations)
        for name, entry in sorted(named.items())
    ]
    return index_document([*entries, *sorted(unnamed, key=lambda entry: entry.digest)])


def _name(entry: Descriptor) -> str:
    return entry.annotations.get(REFERENCE_NAME, "")


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(8)}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _output_errors(place: Path) -> Iterator[None]:
    try:
        with disk_errors(place):
            yield
    except OSError as error:
        raise OutputError(
            f"can't write {place}: {error.strerror or error}", hint="name a place that can be written"
        ) from error


_PIECE = 1024 * 1024


class LayoutSource:
    """Reads a layout, and takes names away; what is not there is None or empty, as with a registry."""

    #: A layout has no host and no prefix.
    registry = Registry(host="localhost")

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def catalog(self) -> tuple[str, ...]:
        return tuple(sorted({name.rpartition(":")[0] for name in self._layout.references()}))

    def tags(self, repository: str) -> tuple[str, ...]:
        names = (name.rpartition(":") for name in self._layout.references())
        return tuple(sorted(tag for name, _, tag in names if name == repository))

    def get_manifest(self, repository: str, reference: str) -> Manifest | None:
        entry = None if is_digest(reference) else self._layout.read(f"{repository}:{reference}")
        digest = entry.digest if entry is not None else reference
        if not is_digest(digest):
            return None
        try:
            document = self._layout.blobs.read(digest)
        except FileNotFoundError:
            return None
        return Manifest(media_type=entry.media_type if entry else "", document=document, digest=digest)

    def referrers(self, _repository: str, digest: str, artifact_type: str | None = None) -> tuple[Descriptor, ...]:
        found = self._layout.referrers(digest)
        return tuple(entry for entry in found if artifact_type in {None, entry.artifact_type})

    def fetch_blob(self, _repository: str, digest: str, write: Callable[[Iterator[bytes]], None]) -> None:
        with self._layout.blobs.open(digest) as file:
            write(iter(lambda: file.read(_PIECE), b""))

    def delete_manifest(self, repository: str, digest: str) -> bool:
        """An image's names with its records; the rest of it has no name of its own, and goes when the layout is collected."""
        return self._layout.unname(repository, digest)
