"""PLACEHOLDER: to be written by its author."""

from __future__ import annotations

from flops.errors import InternalError


def command() -> None:
    """Not there yet."""
    raise InternalError("not there yet")
