"""The platforms that images are built for: one closed enum that owns every spelling."""

from __future__ import annotations

import platform as host_platform
from enum import Enum
from typing import TYPE_CHECKING

from flops.errors import UnknownPlatform

if TYPE_CHECKING:
    from collections.abc import Iterable


class Platform(Enum):
    """`value` is the OCI spelling, `os/architecture`."""

    LINUX_AMD64 = "linux/amd64"
    LINUX_ARM64 = "linux/arm64"

    @property
    def architecture(self) -> str:
        """As OCI images and Debian packages write it: amd64, arm64."""
        return self.value.partition("/")[2]

    @property
    def machine(self) -> str:
        """As wheel tags, uv and the kernel (`uname -m`) write it: x86_64, aarch64."""
        return {"amd64": "x86_64", "arm64": "aarch64"}[self.architecture]

    @property
    def multiarch(self) -> str:
        """Debian's multiarch triplet, the directory under /usr/lib."""
        return f"{self.machine}-linux-gnu"

    @property
    def loader(self) -> str:
        """The dynamic loader's path, by the psABI."""
        return {"amd64": "/lib64/ld-linux-x86-64.so.2", "arm64": "/lib/ld-linux-aarch64.so.1"}[self.architecture]

    def uv_platform(self, glibc: tuple[int, int]) -> str:
        """uv's `--python-platform` for wheels that run on this glibc (major, minor)."""
        return f"{self.machine}-manylinux_{glibc[0]}_{glibc[1]}"

    def __str__(self) -> str:
        return self.value

    def __lt__(self, other: Platform) -> bool:
        return self.value < other.value

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read one platform in OCI's spelling; UnknownPlatform names those that exist."""
        aliases = {"linux/x86_64": cls.LINUX_AMD64, "linux/aarch64": cls.LINUX_ARM64, "linux/arm64/v8": cls.LINUX_ARM64}
        name = text.strip().lower()
        for member in cls:
            if member.value == name:
                return member
        if name in aliases:
            return aliases[name]
        known = ", ".join(member.value for member in cls)
        raise UnknownPlatform(f"unknown platform {text.strip()!r}", hint=f"use one or more of {known}")

    @classmethod
    def parse_list(cls, texts: Iterable[str]) -> tuple[Platform, ...]:
        """Read `linux/amd64,linux/arm64` given at once or one by one; sorted, without repeats."""
        names = [name for text in texts for name in text.split(",") if name.strip()]
        if not names:
            raise UnknownPlatform("no platform was named", hint="for example --platform linux/amd64,linux/arm64")
        return tuple(sorted({cls.parse(name) for name in names}))

    @classmethod
    def host(cls) -> Platform | None:
        """This machine's own platform, or None where no image of ours runs on it."""
        machine = host_platform.machine().lower()
        return {
            "x86_64": cls.LINUX_AMD64,
            "amd64": cls.LINUX_AMD64,
            "aarch64": cls.LINUX_ARM64,
            "arm64": cls.LINUX_ARM64,
        }.get(machine)
