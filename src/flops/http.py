"""The one way to be a client of HTTP: what is trusted, timeouts and proxies, when a request is tried again, failures in words.

`FLOPS_CA_BUNDLE` adds to what this machine trusts: OpenSSL's defaults (SSL_CERT_FILE, SSL_CERT_DIR), or certifi's
authorities where there are none. That holds for every client here, and for git, uv and apt by `authorities`.
"""

from __future__ import annotations

import functools
import os
import random
import re
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import certifi

from flops.errors import BadSetting, Cancelled, FlopsError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    import httpx

T = TypeVar("T")

#: Never reached by a proxy. An IPv6 address stands in brackets, as in every URL.
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s.+?-----END CERTIFICATE-----", re.DOTALL)
_USERINFO = re.compile(r"(?<=://)[^/@\s'\"]+@")
#: Answers that another try may not change; beside 408 and 429 all others of a server that failed may.
_LASTING = {501, 505, 507}
#: What OpenSSL says of a certificate (X509_verify_cert_error_string(3)), and what to do about it.
_EXPIRED, _EARLY, _OTHER_NAME, _OTHER_ADDRESS = 10, 9, 62, 64


def client(ca_bundle: Path | None = None, **options: Any) -> httpx.Client:
    """A client with the timeouts in `seconds` and `connect`; the rest are httpx's own options. BadSetting."""
    import httpx  # noqa: PLC0415 - slow to import, and not needed where everything is remembered

    return httpx.Client(**_options(ca_bundle, **options))


def async_client(ca_bundle: Path | None = None, **options: Any) -> httpx.AsyncClient:
    """The same for an event loop."""
    import httpx  # noqa: PLC0415 - as above

    return httpx.AsyncClient(**_options(ca_bundle, **options))


def _options(
    ca_bundle: Path | None,
    *,
    transport: object = None,
    seconds: float = 30.0,
    connect: float = 10.0,
    headers: dict[str, str] | None = None,
    direct: str = "",
    **more: Any,
) -> dict[str, Any]:
    """`direct` is one more host that no proxy leads to; a `transport` of the caller's has its own way."""
    import httpx  # noqa: PLC0415 - as above

    more |= {"headers": {"User-Agent": "flops", **(headers or {})}, "transport": transport}
    more.setdefault("timeout", httpx.Timeout(seconds, connect=min(connect, seconds)))
    if transport is None:
        more["verify"] = _shared(ca_bundle, os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
        more["mounts"] = {f"all://{host}": None for host in (*_LOOPBACK, direct) if host}
    return more


def trust(ca_bundle: Path | None) -> ssl.SSLContext:
    """What this machine trusts, and the certificates in the bundle. BadSetting where it holds none."""
    context = ssl.create_default_context()
    if not _system():
        context.load_verify_locations(certifi.where())
    if ca_bundle is not None:
        try:
            context.load_verify_locations(ca_bundle)
        except (OSError, ssl.SSLError) as error:
            message = f"{ca_bundle} holds no certificates that can be read"
            raise BadSetting(message, hint="correct FLOPS_CA_BUNDLE") from error
    return context


@functools.lru_cache(maxsize=8)
def _shared(ca_bundle: Path | None, _file: str | None, _directory: str | None) -> ssl.SSLContext:
    """For all clients, since reading certificates takes longer than a push of few bytes."""
    return trust(ca_bundle)


def authorities(ca_bundle: Path, directory: Path) -> Path:
    """A file in `directory` with all that `trust` trusts, for programs whose own setting replaces the system's. BadSetting."""
    path = directory / "authorities.pem"
    if not path.exists():
        trust(ca_bundle)  # which says what is wrong with it
        files = [*(_system() or [Path(certifi.where())]), ca_bundle]
        found = dict.fromkeys(one for file in files for one in _PEM.findall(file.read_text(errors="replace")))
        path.write_text("\n".join(found) + "\n")
    return path


def _system() -> list[Path]:
    """Files of the certificates that this machine trusts, where OpenSSL looks for them."""
    paths = ssl.get_default_verify_paths()
    directories = os.environ.get(paths.openssl_capath_env, paths.openssl_capath).split(os.pathsep)
    hashed = [file for one in directories if one for file in sorted(Path(one).glob("[0-9a-f]*.[0-9]"))]
    return [*([Path(paths.cafile)] if paths.cafile else []), *hashed]


# --- failures in words ------------------------------------------------------------------------------------------------
def without_credentials(text: str) -> str:
    """The text with the user names and passwords of all URLs in it taken out."""
    return _USERINFO.sub("", text)


def reason(error: BaseException, host: str = "") -> tuple[str, str]:
    """Why a request failed, and what to do where a certificate is at fault (else ""); `host` where httpx knows none.

    Another try does not help against a certificate.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        request = getattr(error, "_request", None)
        return _untrusted(cause, request.url.netloc.decode("ascii", "replace") if request is not None else host)
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return without_credentials(said)[:300] or type(error).__name__, ""


def _untrusted(error: ssl.SSLCertVerificationError, host: str) -> tuple[str, str]:
    now = f"{datetime.now(UTC):%Y-%m-%d}"
    match error.verify_code:
        case code if code in {_EXPIRED, _EARLY}:
            told = "has expired" if code == _EXPIRED else "is not valid yet"
            return (
                f"the certificate of {host} {told}",
                f"its operator must renew it, if this machine's date {now} is right",
            )
        case code if code in {_OTHER_NAME, _OTHER_ADDRESS}:
            hint = (
                "use a name that the certificate holds, or have one issued for this name; FLOPS_CA_BUNDLE does not help"
            )
            return f"the certificate of {host} is for other names", hint
        case _:
            hint = f"put the certificate (PEM) of the authority that signs for {host} into a file, and set FLOPS_CA_BUNDLE to it"
            return f"nobody trusts the certificate of {host} here: {error.verify_message}", hint


# --- tries ------------------------------------------------------------------------------------------------------------
class Transient(Exception):
    """A try that failed in a way that another one may not; `failure` is raised when there is none left."""

    def __init__(
        self, failure: FlopsError, *, after: float | None = None, tries: int | None = None, status: int | None = None
    ) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.status = status
        """Of the answer, where there was one."""
        self.progressed = False
        """The try before it brought something further: it does not count."""
        self.after = after
        """Seconds that the server asked for (Retry-After)."""
        self.tries = tries
        """A smaller number of tries in all, where more would only make its user wait."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Tries with pauses that double and are spread at random (0.5 to 1.5 times), so that clients don't return at once."""

    tries: int = 6
    first: float = 0.25
    """Seconds before the second try."""
    longest: float = 30.0
    """The longest pause in seconds, unless the server asks for more."""
    patience: float = 300.0
    """Seconds that all pauses which the server asks for may take; more ends the tries at once."""
    unanswered: int = 3
    """Tries at a registry that never answered: it is most likely not there, and its user waits."""
    sleep: Callable[[float], None] | None = None
    """None: really, and no longer than until the transfer is stopped."""
    spread: Callable[[], float] = lambda: random.uniform(0.5, 1.5)  # noqa: S311 - no secret

    def run(self, operation: Callable[[], T], *, stop: threading.Event | None = None) -> T:
        """Call until it returns, raises something else than Transient, or has no try left; Cancelled once stopped."""
        number, left = 0, self.patience
        while stop is None or not stop.is_set():
            try:
                return operation()
            except Transient as transient:
                number = 1 if transient.progressed else number + 1
                asked = transient.after or 0.0
                left -= asked
                if number >= min(self.tries, transient.tries or self.tries) or left < 0:
                    raise (_told(transient.failure, asked) if asked else transient.failure) from transient.__cause__
                pause = min(self.longest, self.first * 2 ** min(number - 1, 30) * self.spread())
                self._pause(max(pause, asked), stop)
        raise Cancelled("the transfer was stopped")

    def _pause(self, seconds: float, stop: threading.Event | None) -> None:
        if self.sleep is not None:
            self.sleep(seconds)
        elif stop is not None:
            stop.wait(seconds)
        else:
            time.sleep(seconds)


def _told(failure: FlopsError, seconds: float) -> FlopsError:
    message = f"{failure.message}, and asks its clients to wait for {seconds:.0f} s (Retry-After)"
    return type(failure)(message, hint=f"try again in {seconds:.0f} s")


def is_transient(status: int) -> bool:
    """By RFC 9110 and 6585: 408, 429 and the server's own failures."""
    return status in {408, 429} or (status >= 500 and status not in _LASTING)  # noqa: PLR2004


def retry_after(response: httpx.Response) -> float | None:
    """Seconds, from a number or a date (RFC 9110, 10.2.3); None where there is none that can be read."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # numbers of any length
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
