"""What a node has to reach, and where that can't be: addresses that mean another machine there."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from flops.errors import BadSetting, FlopsError
from flops.oci.reference import Reference, Registry, is_loopback

_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - told apart, not bound to


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """None of these may be a loopback address."""

    manager: str
    """`http[s]://HOST[:PORT]`."""
    registry: str
    """Where builders push, `[http://]HOST[:PORT][/PREFIX]`."""
    registry_pull: str | None = None
    image: str
    """The builder image, by digest or by a tag that is written once: a node never pulls a reference twice."""

    @property
    def code(self) -> str:
        """The image as a node's container engine takes it."""
        return str(Reference.parse(self.image))

    def check(self) -> None:
        """BadSetting at the first that a node can't use."""
        _check_host("FLOPS_ADVERTISE", urlsplit(self.manager).hostname or "")
        for name, text in (("FLOPS_REGISTRY", self.registry), ("FLOPS_REGISTRY_PULL", self.registry_pull)):
            if text is not None:
                _check_host(name, Registry.parse(text).hostname)
        try:
            image = Reference.parse(self.image)
        except FlopsError as error:
            raise BadSetting(
                f"FLOPS_BUILDER_IMAGE {self.image!r} is no image: {error.message}",
                hint="flops images builder makes one and prints its reference",
            ) from error
        _check_host("FLOPS_BUILDER_IMAGE", image.registry.hostname)
        if not image.digest and image.tag in (None, "", "latest"):
            raise BadSetting(
                f"FLOPS_BUILDER_IMAGE {self.image!r} can name another image tomorrow, and a node pulls a name once",
                hint="name it by its digest, or by the tag that flops images builder prints",
            )


def _check_host(setting: str, host: str) -> None:
    if not host:
        raise BadSetting(f"{setting} names no host", hint=f"set {setting} to what the nodes reach it by")
    if is_loopback(host) or host in _WILDCARDS:
        raise BadSetting(
            f"{setting} is {host}, which is another machine on each node",
            hint=f"set {setting} to an address or name that the nodes reach",
        )
