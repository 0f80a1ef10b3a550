"""The embedded registry's blobs: reading (with ranges), uploads (monolithic, chunked), mounts, deletes."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, Response

from flops.errors import BadTarget
from flops.oci.reference import repository_name
from flops.registry.protocol import Refusal, digest_of, is_held, name_of, unknown_blob

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from flops.registry.storage import RegistryStore, UploadSession

#: Bytes that are gathered before one visit to a disk thread.
_PIECE = 1024 * 1024
#: Seconds after which an upload that nobody continues is forgotten.
_PATIENCE = 3600.0
#: `Content-Range: START-END` of a chunk; some clients write `bytes=` or `bytes ` before it, and `/TOTAL` after it.
_CONTENT_RANGE = re.compile(r"(?:bytes[= ])?([0-9]{1,18})-([0-9]{1,18})(?:/(?:\*|[0-9]{1,18}))?")
#: One range of `Range: bytes=...`: from a byte on, to another one, or the last ones.
_RANGE = re.compile(r"([0-9]{1,18})-([0-9]{0,18})|-[0-9]{1,18}")
_OCTETS = "application/octet-stream"


class _BlobResponse(FileResponse):
    """Answers ranges too (RFC 9110, 14); those of other units, or that can't be read, and those of HEAD, count for nothing."""

    chunk_size = _PIECE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET" or not _is_range(Headers(scope=scope).get("range", "")):
            scope = {**scope, "headers": [header for header in scope["headers"] if header[0] != b"range"]}
        await super().__call__(scope, receive, send)


@dataclass(kw_only=True)
class _Session:
    upload: UploadSession
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    touched: float = field(default_factory=time.monotonic)


class BlobApi:
    """Endpoints over a store; uploads are kept in memory, so clients restart theirs when the registry was restarted."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store
        self._sessions: dict[str, _Session] = {}

    async def get(self, request: Request) -> Response:
        """GET and HEAD; clause "Pulling blobs"."""
        name, digest = name_of(request), digest_of(request.path_params["digest"])
        if await run_in_threadpool(self._store.use, name, [digest]):
            raise unknown_blob(digest)
        headers = {"Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
        if is_held(request, digest):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return _BlobResponse(self._store.blob_path(digest), media_type=_OCTETS, headers=headers)

    async def delete(self, request: Request) -> Response:
        """Clause "Deleting Blobs": out of this repository only."""
        name, digest = name_of(request), digest_of(request.path_params["digest"])
        if not await run_in_threadpool(self._store.unlink, name, digest):
            raise unknown_blob(digest)
        return Response(status_code=HTTPStatus.ACCEPTED)

    async def begin(self, request: Request) -> Response:
        """POST: a mount, a monolithic upload, or the start of one; clauses "Mounting" and "Pushing blobs"."""
        name, query = name_of(request), request.query_params
        if "mount" in query:
            digest = digest_of(query["mount"])
            if await run_in_threadpool(self._mount, name, digest, query.get("from")):
                return _created(name, digest)
        await self._forget_abandoned()
        session = _Session(upload=self._store.begin(name))
        self._sessions[session.upload.identity] = session
        if "digest" in query and "mount" not in query:
            async with session.lock:
                return await self._complete(request, session, digest_of(query["digest"]))
        return _progress(session, HTTPStatus.ACCEPTED)

    async def append(self, request: Request) -> Response:
        """PATCH: the next chunk, or a stream of unknown length; clause "Pushing a blob in chunks"."""
        session = self._session(request)
        async with session.lock:
            await self._receive(request, session)
            return _progress(session, HTTPStatus.ACCEPTED)

    async def complete(self, request: Request) -> Response:
        """PUT: the last bytes, if any, and the digest of the whole."""
        session = self._session(request)
        digest = digest_of(request.query_params.get("digest", ""))
        async with session.lock:
            return await self._complete(request, session, digest)

    async def status(self, request: Request) -> Response:
        session = self._session(request)
        async with session.lock:
            return _progress(session, HTTPStatus.NO_CONTENT)

    async def cancel(self, request: Request) -> Response:
        session = self._session(request)
        async with session.lock:
            await self._drop(session)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    def _mount(self, name: str, digest: str, source: str | None) -> bool:
        """Without `from`, of any repository: whoever may push here may read them all."""
        try:
            return self._store.link(name, digest, source if source is None else repository_name(source))
        except BadTarget:
            return False

    def _session(self, request: Request) -> _Session:
        session = self._sessions.get(request.path_params["upload"])
        if session is None or session.upload.repository != name_of(request):
            raise Refusal(HTTPStatus.NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "there is no such upload; begin it again")
        session.touched = time.monotonic()
        return session

    async def _complete(self, request: Request, session: _Session, digest: str) -> Response:
        self._live(session)
        await self._receive(request, session)
        upload = session.upload
        if upload.digest != digest:
            await self._drop(session)
            detail = {"received": upload.digest, "bytes": upload.size}
            raise Refusal(HTTPStatus.BAD_REQUEST, "DIGEST_INVALID", "the bytes have another digest", detail=detail)
        await run_in_threadpool(self._store.finish, upload)
        self._sessions.pop(upload.identity, None)
        return _created(upload.repository, digest)

    async def _receive(self, request: Request, session: _Session) -> None:
        """Append the body; what arrived before a client went away stays, and is told by GET."""
        self._live(session)
        expected = _expected(request, session)
        before = session.upload.size
        pieces = bytearray()
        try:
            async for piece in request.stream():
                pieces += piece
                if len(pieces) >= _PIECE:
                    whole, pieces = pieces, bytearray()
                    await run_in_threadpool(session.upload.append, whole)
        except ClientDisconnect:
            await run_in_threadpool(session.upload.append, pieces)
            raise
        await run_in_threadpool(session.upload.append, pieces)
        session.touched = time.monotonic()
        if expected is not None and session.upload.size - before != expected:
            raise _out_of_order(session, "the chunk is not as long as its Content-Range says")

    def _live(self, session: _Session) -> None:
        """Another request may have ended the upload while this one waited for its lock."""
        if session.upload.identity not in self._sessions:
            raise Refusal(HTTPStatus.NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "the upload has ended")

    async def _drop(self, session: _Session) -> None:
        self._sessions.pop(session.upload.identity, None)
        await run_in_threadpool(session.upload.discard)

    async def _forget_abandoned(self) -> None:
        limit = time.monotonic() - _PATIENCE
        for session in [s for s in self._sessions.values() if s.touched < limit and not s.lock.locked()]:
            await self._drop(session)


def _is_range(text: str) -> bool:
    unit, _, ranges = text.partition("=")
    found = [_RANGE.fullmatch(part.strip()) for part in ranges.split(",")]
    return unit.strip().lower() == "bytes" and all(
        match is not None and not (match[2] and int(match[1]) > int(match[2])) for match in found
    )


def _expected(request: Request, session: _Session) -> int | None:
    """The length that a chunk's Content-Range tells; refused where the chunk is not the next one."""
    text = request.headers.get("content-range")
    if text is None:
        return None
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None:
        raise _out_of_order(session, "Content-Range is START-END")
    start, end = int(match[1]), int(match[2])
    length = request.headers.get("content-length")
    if start != session.upload.size or end < start or (length is not None and length != str(end - start + 1)):
        raise _out_of_order(session, "this is not the next chunk")
    return end - start + 1


def _out_of_order(session: _Session, message: str) -> Refusal:
    return Refusal(
        HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message, headers=_upload_headers(session)
    )


def _upload_headers(session: _Session) -> dict[str, str]:
    upload = session.upload
    return {
        "Location": f"/v2/{upload.repository}/blobs/uploads/{upload.identity}",
        "Range": f"0-{max(0, upload.size - 1)}",
        "Docker-Upload-UUID": upload.identity,
    }


def _progress(session: _Session, status: HTTPStatus) -> Response:
    return Response(status_code=status, headers=_upload_headers(session))


def _created(name: str, digest: str) -> Response:
    headers = {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest}
    return Response(status_code=HTTPStatus.CREATED, headers=headers)
