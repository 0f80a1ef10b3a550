"""Whose key signs a build's images, and signatures for images that stand already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flops.builder.publishing.publish import RegistryTarget
from flops.errors import ImageNotFound, UsageError
from flops.oci.descriptor import INDEX, Descriptor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flops.builder.images.actors import Actor
    from flops.builder.publishing.delivery import Existing
    from flops.builder.publishing.publish import Target
    from flops.builder.request import Request
    from flops.oci.signature import SigningKey
    from flops.settings import Settings


def signing_key(request: Request, settings: Settings, target: Target) -> SigningKey | None:
    """The key that was asked for; None where none was. BadKey, UsageError: before any work is done.

    Signatures lie in registries: the settings' key is left alone where images go elsewhere.
    """
    path = request.sign or settings.sign_key
    if path is None:
        return None
    if not isinstance(target, RegistryTarget):
        if request.sign is None:
            return None
        raise UsageError("signatures are kept in a registry, and the images go elsewhere", hint="add --registry")
    from flops.oci.signature import SigningKey  # noqa: PLC0415 - seldom wanted, and slow to import

    password = settings.sign_password.get_secret_value() if settings.sign_password else None
    return SigningKey.read(path, password)


def sign_standing(target: Target, repository: str, standing: Mapping[Actor, Existing], key: SigningKey) -> None:
    """Sign what was found in its place; RegistryError."""
    from flops.oci.signed_images import sign_image  # noqa: PLC0415 - seldom wanted

    if not isinstance(target, RegistryTarget):
        return
    for actor, found in standing.items():
        name = target.client.registry.repository(repository, actor.value)
        manifest = target.client.get_manifest(name, found.digest)
        if manifest is None:
            raise ImageNotFound(f"{name}@{found.digest} went away", hint="build again")
        subject = Descriptor(media_type=INDEX, digest=found.digest, size=len(manifest.document))
        sign_image(target.client, name, subject, key)
