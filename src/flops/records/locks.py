"""The record of an image's locks: pylock.toml files (PEP 751), which pip and uv can install, and the base's packages. Pure."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from flops.oci.descriptor import canonical
from flops.records import LOCKS, Part, Record

if TYPE_CHECKING:
    from flops.base import Base
    from flops.locking.pylock import Lock, LockedWheel
    from flops.platforms import Platform
    from flops.records import Materials

PYLOCK_TYPE = "application/toml"
#: A URL's login, which is removed since records are public.
USER_PART = re.compile(r"://[^/?#]*@")


def locks_record(materials: Materials) -> Record:
    """`pylock.ml-linux-amd64.toml`, `pylock.runtime-linux-amd64.toml` and `base-linux-amd64.json` of each platform."""
    parts: list[Part] = []
    for platform in materials.platforms:
        for name, lock in materials.environments(platform).items():
            title = f"pylock.{name}-{stem(platform)}.toml"
            parts.append(Part(title=title, media_type=PYLOCK_TYPE, data=pylock(lock).encode(), platforms=(platform,)))
        base = _base(materials.bases[platform], materials.recipe.base)
        title = f"base-{stem(platform)}.json"
        parts.append(Part(title=title, media_type="application/json", data=base, platforms=(platform,)))
    return Record(artifact_type=LOCKS, parts=tuple(parts))


def pylock(lock: Lock) -> str:
    """A lock in PEP 751's format; the same lock gives the same text."""
    minor = ".".join(lock.python.split(".")[:2])
    marker = f"sys_platform == 'linux' and platform_machine == '{lock.platform.machine}'"
    lines = [
        'lock-version = "1.0"',
        f"environments = [{_text(marker)}]",
        f"requires-python = {_text(f'=={minor}.*')}",
        'created-by = "flops"',
    ]
    for wheel in lock.wheels:
        lines += ["", "[[packages]]", f"name = {_text(wheel.name)}", f"version = {_text(wheel.version)}"]
        lines += [f"wheels = [{_wheel(wheel)}]"]
    return "\n".join([*lines, "" if lock.wheels else "packages = []\n"])


def stem(platform: Platform) -> str:
    """A platform as part of a file name."""
    return platform.value.replace("/", "-")


def _wheel(wheel: LockedWheel) -> str:
    size = "" if wheel.size is None else f", size = {wheel.size}"
    return (
        f"{{ name = {_text(wheel.filename)}, url = {_text(USER_PART.sub('://', wheel.url))}{size}, "
        f"hashes = {{ sha256 = {_text(wheel.sha256)} }} }}"
    )


def _base(base: Base, image: str | None) -> bytes:
    return canonical(
        {
            "platform": base.platform.value,
            "python": base.python,
            "digest": base.lock,
            "image": image,
            "packages": [package.to_json() for package in base.packages],
        }
    )


def _text(text: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's too, except for DEL and surrogates."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
