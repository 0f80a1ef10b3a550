"""A software bill of materials (SBOM) for each platform, CycloneDX 1.6 as JSON: both environments' wheels, and the base.

It names what an image is made of and nothing of the commit, so images of the same locks share one document.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from flops.images.compose import locked
from flops.oci.descriptor import canonical
from flops.records import SBOM, Part, Record
from flops.records.locks import stem
from flops.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cyclonedx.model.license import License

    from flops.base import BasePackage
    from flops.locking.pylock import LockedWheel
    from flops.platforms import Platform
    from flops.records import Materials
    from flops.store.document_store import DocumentStore


#: Raised when the same materials would have another SBOM.
FORMAT = 1
#: A component's property: the part of the image that holds it.
PART = "io.flops.part"
#: Stands for an unknown licence; Debian's copyright files are in the image under /usr/share/doc.
NOASSERTION = "NOASSERTION"
_NAMESPACE = uuid.UUID("6d4f8a5e-32f5-5b6c-9d55-3f1f0a1f9a10")


def sbom(materials: Materials, platform: Platform) -> bytes:
    """One platform's SBOM. The same materials give the same bytes: it holds no time, and its serial number digests the locks."""
    digests = [lock.digest for lock in materials.environments(platform).values()]
    lock = locked([materials.bases[platform].lock, *digests])
    image = Component(name="actor image", version=lock, type=ComponentType.CONTAINER, bom_ref=f"image/{platform}")
    components = list(_components(materials, platform))
    bom = Bom(
        components=components,
        serial_number=uuid.uuid5(_NAMESPACE, f"{platform} {lock} {__version__}"),
        metadata=BomMetaData(
            component=image,
            tools=ToolRepository(
                components=[Component(name="flops", version=__version__, type=ComponentType.APPLICATION)]
            ),
            properties=[Property(name="io.flops.platform", value=platform.value)],
        ),
    )
    bom.register_dependency(image, components)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["metadata"]["timestamp"]
    # dependencies between packages are unknown here, and empty entries would say that there are none
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
    qualifiers = {"arch": package.architecture, "distro": suite}
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"base/{package.name}@{package.version}",
        purl=PackageURL("deb", "debian", package.name, package.version, qualifiers),
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
        purl=PackageURL("pypi", None, wheel.name, wheel.version),
        hashes=[_sha256(wheel.sha256)],
        licenses=[_licence(licence)],
        properties=[Property(name=PART, value=part)],
    )


def _licence(text: str) -> License:
    """By its SPDX identifier or expression where it has one, else by its name."""
    return LicenseFactory().make_from_string(text) if text else DisjunctiveLicense(name=NOASSERTION)


def _sha256(digits: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digits)


def sbom_record(materials: Materials, store: DocumentStore) -> Record:
    """One document for each platform; those that `store` remembers are not made again."""
    return Record(
        artifact_type=SBOM,
        parts=tuple(
            Part(
                title=f"sbom-{stem(platform)}.cdx.json",
                media_type=SBOM,
                data=_remembered(materials, platform, store),
                platforms=(platform,),
            )
            for platform in materials.platforms
        ),
    )


def _remembered(materials: Materials, platform: Platform, store: DocumentStore) -> bytes:
    request = _request(materials, platform)
    known = store.get(request)
    if known is not None:
        return canonical(known)
    made = sbom(materials, platform)
    store.put(request, json.loads(made))
    return made


def _request(materials: Materials, platform: Platform) -> dict[str, Any]:
    """All that an SBOM names, as the key that it is remembered under."""
    base, locks = materials.bases[platform], materials.environments(platform)
    wheels = {wheel.sha256 for lock in locks.values() for wheel in lock.wheels}
    return {
        "format": [FORMAT, __version__],
        "base": [base.lock, base.ml_interpreter, [package.to_json() for package in base.packages]],
        "image": materials.recipe.base,
        "licences": sorted(item for item in materials.licences.items() if item[0] in wheels),
        "locks": {name: lock.digest for name, lock in locks.items()},
        "python": [materials.python.suite, materials.python.version],
    }
