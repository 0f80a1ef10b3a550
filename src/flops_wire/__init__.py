"""The one contract between processes: events, FLOps' topics and texts, frames between an actor and its worker.

The standard library only, and nothing newer than Python 3.9: the user's environment in an image imports it too.
"""

#: Raised whenever frames, rounds or events change in a way that older peers can't read; images carry it as a label.
WIRE_VERSION = 1
