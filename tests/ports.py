"""Ports of loopback where nobody listens."""

from __future__ import annotations

import socket

_held: list[socket.socket] = []


def unused_port() -> int:
    """Connections are refused; it is held, so that nobody else gets it, and a test may listen there later."""
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not before: two of these would get one port
    _held.append(holder)
    return holder.getsockname()[1]
