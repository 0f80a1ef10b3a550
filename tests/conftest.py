"""What all tests share: how hypothesis tries, and a package index on loopback."""

from __future__ import annotations

import functools
import hashlib
import html
import io
import logging
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import HealthCheck, settings

from flops.locking.lock import Locker

# A machine that is busy with something else is no failure of ours.
settings.register_profile("flops", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("flops")


@pytest.fixture(autouse=True)
def _logs_as_they_were():
    """A program under test sets up its log for good: its handler would write to a later test's stderr, or to a closed one."""
    loggers = [logging.getLogger(name) for name in (None, "flops", "uvicorn")]
    before = [(one, [*one.handlers], one.level, one.propagate) for one in loggers]
    yield
    for one, handlers, level, propagate in before:
        one.handlers[:] = [handler for handler in one.handlers if handler in handlers]
        one.setLevel(level)
        one.propagate = propagate


class Shelf:
    """A simple index (PEP 503) of small wheels in a directory, served on loopback."""

    def __init__(self, root) -> None:
        self.root = root
        self.root.mkdir()

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_) -> None:
                pass

        handler = functools.partial(Handler, directory=str(root))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.handle_error = lambda *_: None  # a client that was stopped
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()

    def add(
        self,
        name: str,
        version: str,
        *requires: str,
        tags: tuple[str, ...] = ("py3-none-any",),
        python: str = "",
        yanked: bool = False,
    ) -> None:
        """One wheel per tag; `python`: its Requires-Python."""
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        metadata += f"Requires-Python: {python}\n" if python else ""
        attributes = (f' data-requires-python="{html.escape(python)}"' if python else "") + (
            ' data-yanked="broken"' if yanked else ""
        )
        metadata += "".join(f"Requires-Dist: {line}\n" for line in requires)
        stem = name.replace("-", "_")
        for tag in tags:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr(f"{stem}-{version}.dist-info/METADATA", metadata)
                archive.writestr(f"{stem}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\n")
                archive.writestr(f"{stem}-{version}.dist-info/RECORD", "")
            self.file(name, f"{stem}-{version}-{tag}.whl", buffer.getvalue(), attributes)

    def file(self, name: str, filename: str, data: bytes, attributes: str = "") -> None:
        directory = self.root / name.replace("_", "-")
        directory.mkdir(exist_ok=True)
        (directory / filename).write_bytes(data)
        with (directory / "index.html").open("a") as page:
            page.write(
                f'<a href="{filename}#sha256={hashlib.sha256(data).hexdigest()}"{attributes}>{filename}</a><br>\n'
            )


@pytest.fixture
def shelf(tmp_path):
    shelf = Shelf(tmp_path / "simple")
    yield shelf
    shelf.stop()


@pytest.fixture
def locker(shelf, tmp_path):
    return Locker(tmp_path / "cache", index_url=shelf.url, retries=0)
