"""`flops images verify`: whether an image was signed with a key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from flops.cli import image_sources, options
from flops.cli.render import print_json
from flops.errors import ImageNotFound, NotSigned
from flops.oci.reference import Reference
from flops.oci.signature import PublicKey, signed_by
from flops.settings import Settings

ReferenceArgument = Annotated[str, typer.Argument(metavar="REF", help="HOST/NAME:TAG or HOST/NAME@sha256:DIGEST.")]
Key = Annotated[Path, typer.Option("--key", metavar="PUB", help="The public key (PEM, ECDSA P-256).")]


def command(reference: ReferenceArgument, key: Key, as_json: options.Json = False) -> None:
    """See that an image was signed with the private part of a key; exit 8 where it was not."""
    settings = Settings.read()
    public = PublicKey.read(key)
    named = Reference.parse(reference)
    with image_sources.client(settings, named.registry) as client:
        found = client.get_manifest(named.repository, named.selector)
        if found is None:
            raise ImageNotFound(f"there is no image {reference}", hint="flops images list shows what there is")
        try:
            signed = signed_by(client, named.repository, found.digest, public)
        except ImageNotFound as error:
            raise NotSigned(error.message, hint=error.hint) from error
    if not signed:
        raise NotSigned(
            f"{reference} ({found.digest}) is signed, but with none of its signatures by {key}",
            hint="see that this is the signer's public key, and that the image is the one that was signed",
        )
    if as_json:
        print_json({"reference": reference, "digest": found.digest, "signed": True})
    else:
        console = Console(soft_wrap=True, highlight=False)
        console.print(Text(f"{named.registry.host}/{named.repository}@{found.digest} is signed by {key}"))
