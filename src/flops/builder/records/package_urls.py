"""Package URLs (purl) of what images are made of. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packageurl import PackageURL

if TYPE_CHECKING:
    from flops.builder.locking.pylock import LockedWheel
    from flops.builder.rootfs import BasePackage


def deb_url(package: BasePackage, suite: str) -> PackageURL:
    qualifiers = {"arch": package.architecture, "distro": suite}
    return PackageURL("deb", "debian", package.name, package.version, qualifiers)


def wheel_url(wheel: LockedWheel) -> PackageURL:
    return PackageURL("pypi", None, wheel.name, wheel.version)
