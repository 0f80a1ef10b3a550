"""A bill of materials for each platform (CycloneDX 1.6, JSON): both environments' wheels, and the base. Pure.

It names what an image is made of and nothing of the commit, so images of the same locks share one document.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

import flops
from flops.builder.images.compose import locked
from flops.builder.records.package_urls import deb_url, wheel_url
from flops.oci.descriptor import canonical

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cyclonedx.model.license import License

    from flops.builder.locking.pylock import LockedWheel
    from flops.builder.records import Materials
    from flops.builder.rootfs import BasePackage
    from flops.platforms import Platform

#: Where a component lies in the image.
PART = "io.flops.part"
#: What is not known; Debian's copyright files stand in the image under /usr/share/doc.
NOASSERTION = "NOASSERTION"
_NAMESPACE = uuid.UUID("6d4f8a5e-32f5-5b6c-9d55-3f1f0a1f9a10")


def sbom(materials: Materials, platform: Platform) -> bytes:
    """The same materials give the same bytes: there is no time in it, and its serial number is made of the locks."""
    digests = [lock.digest for lock in materials.environments(platform).values()]
    lock = locked([materials.bases[platform].lock, *digests])
    image = Component(name="actor image", version=lock, type=ComponentType.CONTAINER, bom_ref=f"image/{platform}")
    components = list(_components(materials, platform))
    bom = Bom(
        components=components,
        serial_number=uuid.uuid5(_NAMESPACE, f"{platform} {lock} {flops.__version__}"),
        metadata=BomMetaData(
            component=image,
            tools=ToolRepository(
                components=[Component(name="flops", version=flops.__version__, type=ComponentType.APPLICATION)]
            ),
            properties=[Property(name="io.flops.platform", value=platform.value)],
        ),
    )
    bom.register_dependency(image, components)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["metadata"]["timestamp"]
    # what needs what is not known here, and an entry without needs would say that there are none
    del document["dependencies"]
    return canonical(document)


def _components(materials: Materials, platform: Platform) -> Iterator[Component]:
    base = materials.bases[platform]
    if base.packages:
        yield from (_package(package, materials.python.suite) for package in base.packages)
    else:
        yield Component(
            name=materials.recipe.base or "base image",
            version=base.lock,
            type=ComponentType.CONTAINER,
            bom_ref="base/image",
            hashes=[_sha256(base.lock.removeprefix("sha256:"))],
            properties=[Property(name=PART, value="base")],
        )
    if base.ml_interpreter:
        version = materials.python.version
        yield Component(
            name="cpython",
            version=version,
            type=ComponentType.PLATFORM,
            bom_ref=f"python/cpython@{version}",
            purl=PackageURL("generic", None, "cpython", version),
            properties=[Property(name=PART, value="python")],
        )
    for part, lock in materials.environments(platform).items():
        yield from (_wheel(wheel, part, materials.licences.get(wheel.sha256, "")) for wheel in lock.wheels)


def _package(package: BasePackage, suite: str) -> Component:
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"base/{package.name}@{package.version}",
        purl=deb_url(package, suite),
        hashes=[_sha256(package.sha256)],
        licenses=[_licence("")],
        properties=[Property(name=PART, value="base")],
    )


def _wheel(wheel: LockedWheel, part: str, licence: str) -> Component:
    return Component(
        name=wheel.name,
        version=wheel.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{part}/{wheel.name}@{wheel.version}",
        purl=wheel_url(wheel),
        hashes=[_sha256(wheel.sha256)],
        licenses=[_licence(licence)],
        properties=[Property(name=PART, value=part)],
    )


def _licence(text: str) -> License:
    """By SPDX's list or as an expression where it is one, else by its name."""
    return LicenseFactory().make_from_string(text) if text else DisjunctiveLicense(name=NOASSERTION)


def _sha256(digits: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digits)
