"""Whether a push could succeed, asked before any work: the repositories take uploads from us, and take indexes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from flops.errors import RegistryError, RegistryRefused
from flops.http import Transient
from flops.oci.authentication import pushing
from flops.oci.blobs import sha256
from flops.oci.descriptor import INDEX, MANIFEST, canonical
from flops.oci.transport import error_codes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import httpx

    from flops.oci.transport import Session

_ANY = frozenset(range(200, 500)) - {401, 403, 408, 413, 429}
_UNSUPPORTED_TYPE = 415


def check_push(session: Session, repositories: Sequence[str]) -> None:
    """All repositories at once; RegistryAuth, RegistryRefused, RegistryUnreachable. What it begins there it takes back."""
    asked = [partial(_check_upload, session, repository) for repository in repositories]
    asked.append(partial(_check_index, session, repositories[0]))
    with ThreadPoolExecutor(max_workers=len(asked), thread_name_prefix="flops-check") as pool:
        for answer in [pool.submit(ask) for ask in asked]:
            answer.result()


def _check_upload(session: Session, repository: str) -> None:
    path, scope = f"/v2/{repository}/blobs/uploads/", pushing(repository)
    answer = session.request("POST", path, expect={202}, scope=scope, headers={"Content-Length": "0"})
    with suppress(RegistryError, Transient):  # not every registry takes an upload back; it ends by itself
        session.send("DELETE", session.location(answer), expect=_ANY, scope=scope)


def _check_index(session: Session, repository: str) -> None:
    """Offer an index of a manifest that is nowhere: it is refused for that, and for its type where that is not taken."""
    nowhere = {"mediaType": MANIFEST, "digest": sha256(b"a manifest that nobody has"), "size": 2}
    document = canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": [nowhere]})
    path, scope = f"/v2/{repository}/manifests/{sha256(document)}", pushing(repository)
    answer = session.request("PUT", path, expect=_ANY, scope=scope, headers={"Content-Type": INDEX}, content=document)
    if answer.is_success:  # a registry that does not look at what an index names
        with suppress(RegistryError, Transient):
            session.send("DELETE", path, expect=_ANY, scope=scope)
    elif _is_type_refused(answer):
        failure = session.refusal(answer)
        raise RegistryRefused(
            f"{session.registry.host} takes no images over platforms (OCI image indexes): {failure.message}",
            hint="push to a registry that takes the OCI image format, version 1",
        )


def _is_type_refused(answer: httpx.Response) -> bool:
    """Only where the registry says so: whatever else it says, the push itself will tell."""
    if answer.status_code == _UNSUPPORTED_TYPE:
        return True
    said = answer.text[:2000].lower().replace("-", " ").replace("_", " ")
    about_type = "media type" in said or "mediatype" in said or "content type" in said
    return bool(error_codes(answer) & {"UNSUPPORTED", "MANIFEST_INVALID"}) and about_type
