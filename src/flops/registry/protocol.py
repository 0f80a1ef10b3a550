"""What all parts of the embedded registry say alike: refusals, checked names, pages (distribution specification 1.1)."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from starlette.responses import JSONResponse, Response

from flops.errors import BadTarget
from flops.oci.reference import is_digest, repository_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request

#: Answered to a client that asks for no number, and the most that any gets.
_PAGE = 1000


class Refusal(Exception):
    """A request that is answered with an error of the specification's table, "Error Codes"."""

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        message: str,
        *,
        detail: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.detail = status, code, message, detail
        self.headers = dict(headers or {})

    def response(self) -> Response:
        error = {"code": self.code, "message": self.message, "detail": self.detail}
        return JSONResponse({"errors": [error]}, status_code=self.status, headers=self.headers)


def name_of(request: Request) -> str:
    try:
        return repository_name(request.path_params["name"])
    except BadTarget as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, "NAME_INVALID", error.message) from error


def digest_of(text: str) -> str:
    if not is_digest(text):
        raise Refusal(HTTPStatus.BAD_REQUEST, "DIGEST_INVALID", "a digest is sha256: and 64 hexadecimal digits")
    return text


def unknown_blob(digest: str) -> Refusal:
    return Refusal(
        HTTPStatus.NOT_FOUND, "BLOB_UNKNOWN", "this repository holds no such blob", detail={"digest": digest}
    )


def unknown_name(name: str) -> Refusal:
    return Refusal(HTTPStatus.NOT_FOUND, "NAME_UNKNOWN", "there is no such repository", detail={"name": name})


def is_held(request: Request, digest: str) -> bool:
    """Whether the client holds it already (`If-None-Match`, RFC 9110, 13.1.2): it is answered by 304, without a body."""
    given = ",".join(request.headers.getlist("if-none-match")).split(",")
    return not {digest, "*"}.isdisjoint(one.strip().removeprefix("W/").strip('"') for one in given)


def page(request: Request, names: Sequence[str], fill: Mapping[str, object], key: str) -> Response:
    """The names after `last`, at most `n` of them, with a Link to those that follow (clause "Listing Tags")."""
    text = request.query_params.get("n", str(_PAGE))
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_PAGE)) + 6):
        raise Refusal(HTTPStatus.BAD_REQUEST, "PAGINATION_NUMBER_INVALID", "n is a number, 0 or more")
    number = min(int(text), _PAGE)
    last = request.query_params.get("last")
    rest = [name for name in names if last is None or (name.lower(), name) > (last.lower(), last)]
    shown = rest[:number]
    headers = {}
    if shown and len(shown) < len(rest):
        query = urlencode({"n": number, "last": shown[-1]})
        headers["Link"] = f'<{request.url.path}?{query}>; rel="next"'
    return JSONResponse({**fill, key: shown}, headers=headers)
