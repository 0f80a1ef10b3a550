"""A registry's manifests, indexes and tags, each checked against its digest (distribution specification 1.1)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flops.errors import (
    BadTarget,
    DeletesUnsupported,
    ManifestIncomplete,
    RegistryAuth,
    RegistryDigest,
    RegistryError,
    RegistryRefused,
)
from flops.http import Transient
from flops.oci.authentication import deleting, pulling, pushing
from flops.oci.blobs import sha256
from flops.oci.descriptor import DOCKER_INDEX, DOCKER_MANIFEST, INDEX, MANIFEST
from flops.oci.reference import check_tag, is_digest, is_tag, repository_name
from flops.oci.transport import error_codes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import httpx

    from flops.oci.transport import Session


_ACCEPT = {"Accept": f"{INDEX}, {MANIFEST}, {DOCKER_INDEX}, {DOCKER_MANIFEST}"}
_DIGEST = "docker-content-digest"
#: What registries answer for a manifest that names what they don't hold.
_INCOMPLETE = {"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"}
#: What registries answer that delete nothing, or no tags.
_NO_DELETES = {400, 405, 501}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A manifest or index as the registry gave it; `digest` was computed here."""

    media_type: str
    document: bytes
    digest: str


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a registry said when it took a manifest."""

    digest: str
    lists_subject: bool
    """It lists the manifest among the referrers of its subject (`OCI-Subject`)."""


class Manifests:
    """The requests; see RegistryClient for what they promise."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def put(self, repository: str, reference: str, media_type: str, document: bytes) -> Receipt:
        """Push a manifest or index under a tag or its digest, and see that it is there.

        ManifestIncomplete where the registry does not hold what it names, RegistryDigest where it kept another one.
        """
        digest = sha256(document)
        lists_subject = self._session.retry.run(lambda: self._put(repository, reference, media_type, document, digest))
        self._session.retry.run(lambda: self._verify(repository, reference, digest))
        return Receipt(digest=digest, lists_subject=lists_subject)

    def get(self, repository: str, reference: str) -> Manifest | None:
        """A manifest or index by tag or digest; None where there is none. RegistryDigest where it is not what it says."""
        path = _path(repository, reference)
        answer = self._session.request("GET", path, expect={200, 404}, scope=pulling(repository), headers=_ACCEPT)
        if answer.status_code != 200:  # noqa: PLR2004
            return None
        digest = sha256(answer.content)
        if digest != (reference if is_digest(reference) else answer.headers.get(_DIGEST, digest)):
            raise self._other_digest(path)
        media_type = answer.headers.get("content-type", "").partition(";")[0].strip()
        return Manifest(media_type=media_type, document=answer.content, digest=digest)

    def delete(self, repository: str, reference: str) -> bool:
        """A manifest by its digest, or a tag; whether it was there. DeletesUnsupported."""
        path = _path(repository, reference)
        answer = self._session.request(
            "DELETE", path, expect={200, 202, 204, 404, *_NO_DELETES}, scope=deleting(repository)
        )
        if answer.status_code in _NO_DELETES:
            failure = self._session.refusal(answer)
            what = "manifests" if is_digest(reference) else "tags"
            hint = (
                "see that its operator allows deletes" if is_digest(reference) else "delete the manifest by its digest"
            )
            raise DeletesUnsupported(f"{self._session.registry.host} deletes no {what}: {failure.message}", hint=hint)
        return answer.is_success

    def _put(self, repository: str, reference: str, media_type: str, document: bytes, digest: str) -> bool:
        path = _path(repository, reference)
        answer = self._session.send(
            "PUT",
            path,
            expect={200, 201, 202, 400, 404},
            scope=pushing(repository),
            headers={"Content-Type": media_type},
            content=document,
        )
        if not answer.is_success:
            failure = self._session.refusal(answer)
            if error_codes(answer) & _INCOMPLETE:
                raise ManifestIncomplete(failure.message, hint="push again")
            raise failure
        if answer.headers.get(_DIGEST, digest) != digest:
            raise Transient(self._other_digest(path), tries=2)
        return "oci-subject" in answer.headers

    def _verify(self, repository: str, reference: str, digest: str) -> None:
        """The registry must tell our digest under the reference, or at least hold it where somebody moved the tag."""
        path = f"/v2/{repository}/manifests"
        told = self._told(f"{path}/{reference}", repository)
        if told == digest:
            return
        if told is None:  # its storage may not show at once what it took
            raise Transient(self._other_digest(f"{path}/{reference}"))
        if is_digest(reference) or self._told(f"{path}/{digest}", repository) != digest:
            raise self._other_digest(f"{path}/{reference}")

    def _told(self, path: str, repository: str) -> str | None:
        answer = self._session.request("HEAD", path, expect={200, 404}, scope=pushing(repository), headers=_ACCEPT)
        if answer.status_code != 200:  # noqa: PLR2004
            return None
        if _DIGEST in answer.headers:
            return answer.headers[_DIGEST]
        whole = self._session.request("GET", path, expect={200}, scope=pushing(repository), headers=_ACCEPT)
        return sha256(whole.content)

    def _other_digest(self, path: str) -> RegistryError:
        return RegistryDigest(
            f"{self._session.registry.host} holds another manifest under {path} than it says or was sent",
            hint="something between us and the registry changes images; push to the registry itself",
        )


def _path(repository: str, reference: str) -> str:
    return f"/v2/{repository}/manifests/{reference if is_digest(reference) else check_tag(reference)}"


#: A registry that sends pages of its own size is asked this often at most.
_PAGES = 10_000
_CATALOG = ("registry:catalog:*",)
_NOT_FOUND = 404


def tags(session: Session, repository: str) -> tuple[str, ...]:
    """All tags, in the registry's order; none where there is no such repository."""
    found: list[str] = []
    for answer in pages(session, f"/v2/{repository}/tags/list?n=1000", expect={200, 404}, scope=pulling(repository)):
        found += [name for name in _names(answer, "tags") if is_tag(name)]
    return tuple(dict.fromkeys(found))


def catalog(session: Session) -> tuple[str, ...]:
    """All repositories, in the registry's order."""
    found: list[str] = []
    try:
        for answer in pages(session, "/v2/_catalog?n=1000", expect={200}, scope=_CATALOG):
            found += [name for name in _names(answer, "repositories") if _is_repository(name)]
    except (RegistryAuth, RegistryRefused) as error:
        hint = "name the repository, or ask for a registry and account that may list them"
        raise type(error)(
            f"{session.registry.host} does not list its repositories: {error.message}", hint=hint
        ) from error
    return tuple(dict.fromkeys(found))


def pages(
    session: Session,
    path: str,
    *,
    expect: Collection[int],
    scope: tuple[str, ...],
    headers: Mapping[str, str] | None = None,
) -> Iterator[httpx.Response]:
    """Answer after answer, by the Link to the next one; ends where one repeats, or at an answer that is no list."""
    url: str | httpx.URL = path
    seen: set[str] = set()
    for _ in range(_PAGES):
        answer = session.request("GET", url, expect=expect, scope=scope, headers=headers)
        yield answer
        onward = answer.links.get("next", {}).get("url") if answer.is_success else None
        if not onward or onward in seen:
            return
        seen.add(onward)
        url = session.resolve(answer, onward)


def _names(answer: httpx.Response, key: str) -> list[str]:
    if answer.status_code == _NOT_FOUND:
        return []
    try:
        names: Any = json.loads(answer.content)[key] or []
        return [name for name in names if isinstance(name, str)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RegistryRefused(f"the registry's list of {key} can't be read") from error


def _is_repository(name: str) -> bool:
    try:
        return bool(repository_name(name))
    except BadTarget:
        return False
