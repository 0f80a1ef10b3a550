"""The page's session: a cookie that says until when, signed; the manager keeps only which ones were ended before."""

from __future__ import annotations

import base64
import hmac
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

COOKIE = "flops_session"
_PARTS = 3


@dataclass(frozen=True, kw_only=True)
class Sessions:
    """Makes and judges cookies. Their key comes from the token: another token ends every session."""

    secret: bytes = field(repr=False)
    secure: bool = False
    """Pages come by https: the cookie travels by nothing else."""
    clock: Callable[[], float] = time.time
    ended: dict[str, float] = field(default_factory=dict, repr=False)
    """Logged out, by their numbers, and when they would have ended by themselves."""

    def make(self, seconds: float) -> str:
        """A session of this length."""
        payload = f"{int(self.clock() + seconds)}.{secrets.token_urlsafe(12)}"
        return f"{payload}.{self._sign(payload)}"

    def valid(self, value: str) -> bool:
        parts = value.split(".")
        if len(parts) != _PARTS or not self.secret or not value.isascii():
            return False
        signed = hmac.compare_digest(self._sign(".".join(parts[:2])), parts[2])
        return signed and parts[0].isdigit() and int(parts[0]) > self.clock() and parts[1] not in self.ended

    def end(self, value: str) -> tuple[str, float] | None:
        """From now on this session is none: its number and its own end, to be remembered; None where it was none before."""
        if not self.valid(value):
            return None
        until, number, _ = value.split(".")
        for old in [one for one, ends in self.ended.items() if ends <= self.clock()]:
            del self.ended[old]
        self.ended[number] = float(until)
        return number, float(until)

    def cookie(self, value: str, seconds: float) -> str:
        """The Set-Cookie header; an empty value ends the session."""
        age = int(seconds) if value else 0
        return f"{COOKIE}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict" + (
            "; Secure" if self.secure else ""
        )

    def _sign(self, payload: str) -> str:
        return base64.urlsafe_b64encode(hmac.digest(self.secret, payload.encode(), "sha256")).decode().rstrip("=")
