"""Provenance of images: an in-toto statement with SLSA's predicate (slsa.dev/provenance/v1). Pure."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from flops.oci.descriptor import canonical
from flops.recipe import RECIPE_VERSION
from flops.records import PROVENANCE, Part, Record, timestamp
from flops.records.locks import stem
from flops.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from flops.records import Materials

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:flops:image-build:1"
BUILDER = "urn:flops:builder"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the builder."""

    identity: str
    """A UUID."""
    begun: datetime
    """UTC."""
    ended: datetime
    """UTC; when all but the tags was in place."""


def provenance_record(materials: Materials, run: Run, subjects: Mapping[str, str], *, locks: Record) -> Record:
    """One statement for both actors. `subjects`: digests (`sha256:...`) of indexes and manifests by name."""
    statement = {
        "_type": STATEMENT,
        "subject": [_named(name, digest) for name, digest in sorted(subjects.items())],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "source": materials.identity.source,
                    "revision": materials.identity.commit,
                    "platforms": [platform.value for platform in materials.platforms],
                    "recipe": _recipe(materials),
                },
                "internalParameters": {
                    "python": materials.python.version,
                    "provider": materials.python.provider,
                    "recipe": materials.identity.recipe,
                    "recipeVersion": RECIPE_VERSION,
                },
                "resolvedDependencies": dependencies(materials, locks),
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"flops": __version__}},
                "metadata": {
                    "invocationId": run.identity,
                    "startedOn": timestamp(run.begun),
                    "finishedOn": timestamp(run.ended),
                },
            },
        },
    }
    part = Part(
        title=f"provenance-{'-'.join(map(stem, materials.platforms))}.json",
        media_type=PROVENANCE,
        data=canonical(statement),
        platforms=materials.platforms,
    )
    return Record(artifact_type=PROVENANCE, parts=(part,), built=timestamp(run.begun))


def dependencies(materials: Materials, locks: Record) -> Sequence[Mapping[str, Any]]:
    """The commit, the base image if there is one, and the documents of the locks' record by their digests.

    The documents are attached to the same index; they name every wheel and package with its hash.
    """
    identity = materials.identity
    found = [_commit(identity.source, identity.commit)]
    if materials.recipe.base:
        digests = sorted({materials.bases[platform].lock.removeprefix("sha256:") for platform in materials.platforms})
        found += [{"uri": f"oci:{materials.recipe.base}", "digest": {"sha256": digest}} for digest in digests]
    found += [
        {"name": part.title, "digest": {"sha256": hashlib.sha256(part.data).hexdigest()}, "mediaType": part.media_type}
        for part in locks.parts
    ]
    return found


def _commit(source: str, commit: str) -> dict[str, Any]:
    """A commit with its digest; a directory with uncommitted changes has only a name."""
    if not commit.isalnum():
        return {"uri": f"{source}@{commit}"}
    remote = "://" in source or "@" in source
    return {"uri": f"git+{source}@{commit}" if remote else source, "digest": {"gitCommit": commit}}


def _recipe(materials: Materials) -> dict[str, Any]:
    fields = asdict(materials.recipe)
    return {key: value.value if isinstance(value, Enum) else value for key, value in fields.items()}


def _named(name: str, digest: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}
