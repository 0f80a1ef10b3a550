"""`flops images show`: one image with its platforms, layers, labels and records."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flops.cli import image_sources, options
from flops.cli.render import megabytes, one_line, plain, print_json
from flops.errors import BadImage, ImageNotFound, UsageError
from flops.oci.image import parse_config, parse_index, parse_manifest
from flops.oci.signature import signature_tag
from flops.platforms import Platform
from flops.records import LOCKS, PROVENANCE, SBOM, TITLE
from flops.records.attach import read_document, record_documents
from flops.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flops.oci.descriptor import Descriptor
    from flops.oci.image import ParsedManifest
    from flops.records import Part
    from flops.records.attach import ImageSource

ReferenceArgument = Annotated[
    str, typer.Argument(metavar="REF", help="HOST/NAME:TAG in a registry, NAME:TAG in a layout.")
]
#: Characters of a layer's title that are shown.
TITLE_LENGTH = 100
Locks = Annotated[bool, typer.Option("--locks", help="Print the locks (pylock.toml) and the base's packages.")]
Sbom = Annotated[bool, typer.Option("--sbom", help="Print the SBOM (CycloneDX).")]
Provenance = Annotated[bool, typer.Option("--provenance", help="Print the provenance (in-toto, SLSA).")]
OnlyPlatform = Annotated[str | None, typer.Option("--platform", metavar="P", help="Of this platform alone.")]


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """An image as it was read."""

    reference: str
    digest: str
    annotations: Mapping[str, str]
    images: Mapping[Platform, tuple[str, ParsedManifest, tuple[str, ...]]]
    """Digest, manifest and the layers' comments."""
    records: Mapping[str, Sequence[Descriptor]]
    signed: bool


def command(
    reference: ReferenceArgument,
    locks: Locks = False,
    sbom: Sbom = False,
    provenance: Provenance = False,
    platform: OnlyPlatform = None,
    directory: image_sources.DirectoryOption = None,
    as_json: options.Json = False,
) -> None:
    """Show an image, or one of its records."""
    kinds = [kind for kind, wanted in ((LOCKS, locks), (SBOM, sbom), (PROVENANCE, provenance)) if wanted]
    if len(kinds) > 1:
        raise UsageError("--locks, --sbom and --provenance exclude each other", hint="ask for one at a time")
    only = Platform.parse(platform) if platform else None
    with image_sources.find(Settings.read(), reference, directory) as (stock, repository, selector):
        shown = _look(stock, repository, selector, reference)
        if kinds:
            _print_parts(list(_parts(stock, repository, shown, kinds[0], only)), as_json=as_json)
            return
    if as_json:
        print_json(document(shown))
    else:
        show(shown)


def _look(stock: ImageSource, repository: str, selector: str, reference: str) -> _Shown:
    found = stock.get_manifest(repository, selector)
    if found is None:
        raise ImageNotFound(f"there is no image {reference}", hint="flops images list shows what there is")
    try:
        index = parse_index(found.document)
    except BadImage as error:
        raise BadImage(f"{reference} is no image over platforms: {error.message}") from error
    images = {}
    for entry in index.manifests:
        child = stock.get_manifest(repository, entry.digest)
        if entry.platform is None or child is None:
            continue
        manifest = parse_manifest(child.document)
        config = parse_config(_blob(stock, repository, manifest.config))
        images[entry.platform] = (entry.digest, manifest, config.comments)
    return _Shown(
        reference=reference,
        digest=found.digest,
        annotations=index.annotations,
        images=images,
        records=record_documents(stock, repository, found.digest),
        signed=stock.get_manifest(repository, signature_tag(found.digest)) is not None,
    )


def _blob(stock: ImageSource, repository: str, blob: Descriptor) -> bytes:
    return read_document(stock, repository, blob).data


def _parts(stock: ImageSource, repository: str, shown: _Shown, kind: str, only: Platform | None) -> Iterator[Part]:
    blobs = shown.records.get(kind)
    if not blobs:
        raise ImageNotFound(
            f"{shown.reference} has no such record", hint="it was built without, or its registry kept none"
        )
    for blob in blobs:
        part = read_document(stock, repository, blob)
        if only is None or only in part.platforms:
            yield part


def _print_parts(parts: Sequence[Part], *, as_json: bool) -> None:
    """Documents are data: one alone is printed as it is, several under their names."""
    read_back = {part.title: _value(part) for part in parts}
    if as_json:
        print_json(read_back)
    elif len(parts) == 1:
        typer.echo(plain(parts[0].data.decode("utf-8", "replace")))
    else:
        for title, value in read_back.items():
            typer.echo(f"# {one_line(title)}")
            typer.echo(plain(value if isinstance(value, str) else json.dumps(value, indent=2)))


def _value(part: Part) -> Any:
    """A JSON document as a value, others as text."""
    text = part.data.decode("utf-8", "replace")
    try:
        return json.loads(text) if part.title.endswith(".json") else text
    except (ValueError, RecursionError):
        return text


def document(shown: _Shown) -> dict[str, Any]:
    """The object that `--json` prints; sizes in bytes."""
    return {
        "reference": shown.reference,
        "digest": shown.digest,
        "labels": dict(shown.annotations),
        "platforms": {
            platform.value: {
                "digest": digest,
                "layers": [
                    {"digest": layer.digest, "bytes": layer.size, "title": title}
                    for layer, title in zip(manifest.layers, _titles(manifest, comments), strict=True)
                ],
            }
            for platform, (digest, manifest, comments) in shown.images.items()
        },
        "records": {
            kind: [{"title": blob.annotations.get(TITLE, ""), "digest": blob.digest, "bytes": blob.size} for blob in of]
            for kind, of in shown.records.items()
        },
        "signed": shown.signed,
    }


def show(shown: _Shown) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(Text(one_line(f"{shown.reference}\n{shown.digest}").replace("\\n", "\n")))
    for name, text in sorted(shown.annotations.items()):
        console.print(Text(one_line(f"  {name}: {text}")))
    for platform, (digest, manifest, comments) in shown.images.items():
        size = sum(layer.size for layer in manifest.layers)
        console.print(Text(f"\n{platform}  {digest}  {len(manifest.layers)} layers, {megabytes(size)}"))
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(justify="right")
        table.add_column()
        table.add_column(overflow="fold")
        for layer, title in zip(manifest.layers, _titles(manifest, comments), strict=True):
            table.add_row(
                megabytes(layer.size),
                layer.digest[7:19],
                Text(one_line(title if len(title) <= TITLE_LENGTH else f"{title[:TITLE_LENGTH]}…")),
            )
        console.print(table)
    console.print(Text("\nrecords" if shown.records else "\nno records"))
    for of in shown.records.values():
        for blob in of:
            console.print(Text(one_line(f"  {blob.annotations.get(TITLE, blob.digest)}  {blob.size} bytes")))
    signed = "signed; flops images verify --key tells by whom" if shown.signed else "not signed"
    console.print(Text(signed))


def _titles(manifest: ParsedManifest, comments: Sequence[str]) -> Sequence[str]:
    """The history's comments, where it has one for each layer."""
    return comments if len(comments) == len(manifest.layers) else [""] * len(manifest.layers)
