"""The embedded registry's manifests, tags, referrers and catalog."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from flops.oci.blobs import sha256
from flops.oci.reference import is_digest, is_tag
from flops.registry.protocol import Refusal, digest_of, is_held, name_of, page, unknown_name

if TYPE_CHECKING:
    from starlette.requests import Request

    from flops.registry.storage import RegistryStore

#: The least that registries should take, and what docker's takes (clause "Pushing Manifests").
MANIFEST_LIMIT = 4 * 1024 * 1024
_INDEX = "application/vnd.oci.image.index.v1+json"
_INDEXES = {_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"}
_MANIFESTS = {"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"}
_TYPE_LIMIT = 255


class ManifestApi:
    """Endpoints over a store."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store

    async def get(self, request: Request) -> Response:
        """GET and HEAD by tag or digest; clause "Pulling manifests". What is neither is the name of no manifest."""
        name, reference = name_of(request), str(request.path_params["reference"])
        if not is_digest(reference) and not is_tag(reference):
            raise _unknown(reference)
        digest, media_type = await run_in_threadpool(self._find, name, reference)
        headers = {"Docker-Content-Digest": digest, "ETag": f'"{digest}"', "Content-Type": media_type}
        if is_held(request, digest):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(await run_in_threadpool(self._store.read_manifest, digest), headers=headers)

    async def put(self, request: Request) -> Response:
        """Clause "Pushing Manifests"; what the manifest names must already be in the repository."""
        name, reference = name_of(request), _reference(request)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip()
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MANIFEST_LIMIT:
                message = f"a manifest has up to {MANIFEST_LIMIT} bytes"
                raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "SIZE_INVALID", message)
        return await run_in_threadpool(self._put, name, reference, media_type, bytes(body))

    async def delete(self, request: Request) -> Response:
        """Clauses "Deleting tags" and "Deleting Manifests" (with the tags that name the manifest)."""
        name, reference = name_of(request), _reference(request)
        remove = self._store.remove_manifest if is_digest(reference) else self._store.untag
        if not await run_in_threadpool(remove, name, reference):
            raise _unknown(reference)
        return Response(status_code=HTTPStatus.ACCEPTED)

    async def tags(self, request: Request) -> Response:
        """Clause "Listing Tags"."""
        name = name_of(request)
        tags = await run_in_threadpool(self._store.tags, name)
        if tags is None:
            raise unknown_name(name)
        return page(request, tags, {"name": name}, "tags")

    async def catalog(self, request: Request) -> Response:
        """All repositories, as docker's registry lists them."""
        names = await run_in_threadpool(self._store.repositories)
        return page(request, names, {}, "repositories")

    async def referrers(self, request: Request) -> Response:
        """Clause "Listing Referrers": an index, empty where nothing has this subject."""
        name, digest = name_of(request), digest_of(request.path_params["digest"])
        wanted = request.query_params.get("artifactType")
        found = await run_in_threadpool(self._referrers, name, digest)
        headers = {"Content-Type": _INDEX}
        if wanted is not None:
            found = [entry for entry in found if entry.get("artifactType") == wanted]
            headers["OCI-Filters-Applied"] = "artifactType"
        document = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": found}
        return Response(json.dumps(document), headers=headers)  # ASCII: annotations may hold half a surrogate pair

    def _find(self, name: str, reference: str) -> tuple[str, str]:
        """The digest and the media type."""
        digest = reference if is_digest(reference) else self._store.resolve(name, reference)
        media_type = self._store.media_type(name, digest) if digest else None
        if digest is None or media_type is None:
            raise _unknown(reference)
        return digest, media_type

    def _put(self, name: str, reference: str, media_type: str, body: bytes) -> Response:
        document = _parse(body, media_type)
        subject = _subject(document)
        digest = sha256(body)
        if is_digest(reference) and reference != digest:
            raise Refusal(HTTPStatus.BAD_REQUEST, "DIGEST_INVALID", f"the manifest has the digest {digest}")
        with self._store.locked():
            missing = self._missing(name, document, media_type)
            if missing:
                message = "the manifest names what this repository does not hold"
                raise Refusal(HTTPStatus.BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN", message, detail=missing)
            self._store.put_manifest(name, body, media_type, subject)
            if not is_digest(reference):
                self._store.tag(name, reference, digest)
        headers = {"Location": f"/v2/{name}/manifests/{digest}", "Docker-Content-Digest": digest}
        if subject is not None:
            headers["OCI-Subject"] = subject
        return Response(status_code=HTTPStatus.CREATED, headers=headers)

    def _missing(self, name: str, document: dict[str, Any], media_type: str) -> list[dict[str, str]]:
        if media_type in _INDEXES:
            digests = [_digest(entry) for entry in _entries(document, "manifests")]
            absent = [digest for digest in digests if self._store.media_type(name, digest) is None]
        elif media_type in _MANIFESTS:
            # Layers with `urls` lie elsewhere and need not be pushed (image specification, "Non-distributable layers").
            layers = [entry for entry in _entries(document, "layers") if not entry.get("urls")]
            config = document.get("config")
            digests = [_digest(entry) for entry in [config if isinstance(config, dict) else {}, *layers]]
            absent = self._store.use(name, digests)
        else:
            absent = []
        return [{"digest": digest} for digest in dict.fromkeys(absent)]

    def _referrers(self, name: str, subject: str) -> list[dict[str, Any]]:
        found = []
        for digest in self._store.referrers(name, subject):
            media_type = self._store.media_type(name, digest)
            if media_type is None:
                continue
            body = self._store.read_manifest(digest)
            document = json.loads(body)
            entry = {"mediaType": media_type, "digest": digest, "size": len(body)}
            config = document.get("config")
            kind = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
            if kind and isinstance(kind, str):
                entry["artifactType"] = kind
            annotations = document.get("annotations")
            if (
                annotations
                and isinstance(annotations, dict)
                and all(isinstance(it, str) for it in annotations.values())
            ):
                entry["annotations"] = annotations
            found.append(entry)
        return found


def _reference(request: Request) -> str:
    text = str(request.path_params["reference"])
    if ":" in text:
        return digest_of(text)
    if not is_tag(text):
        raise Refusal(HTTPStatus.BAD_REQUEST, "TAG_INVALID", "this is neither a tag nor a digest")
    return text


def _unknown(reference: str) -> Refusal:
    message = "this repository holds no such manifest"
    return Refusal(HTTPStatus.NOT_FOUND, "MANIFEST_UNKNOWN", message, detail={"reference": reference})


def _invalid(message: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, "MANIFEST_INVALID", message)


def _no_number(name: str) -> None:
    """Python reads NaN and Infinity, which are no JSON."""
    raise ValueError(f"{name} is no JSON")


def _parse(body: bytes, media_type: str) -> dict[str, Any]:
    try:
        document = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise _invalid("a manifest is a JSON object") from error
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:  # noqa: PLR2004
        raise _invalid("a manifest is a JSON object with schemaVersion 2")
    if not media_type or len(media_type) > _TYPE_LIMIT:
        raise _invalid("a manifest needs its media type as Content-Type")
    if document.get("mediaType", media_type) != media_type:
        raise _invalid("Content-Type and the manifest's mediaType differ")
    return document


def _entries(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = document.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _invalid(f"{key} is a list of descriptors")
    return entries


def _digest(descriptor: dict[str, Any]) -> str:
    digest = descriptor.get("digest")
    if not isinstance(digest, str) or not is_digest(digest):
        raise _invalid("a descriptor has a sha256 digest")
    return digest


def _subject(document: dict[str, Any]) -> str | None:
    subject = document.get("subject")
    return _digest(subject) if isinstance(subject, dict) else None
