"""An HTTP server that speaks the manager's contract for clients, with faults on order; for tests of what talks to a manager."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PREFIX = "/api/flops/projects"


class ScriptedManager:
    """`projects` and `events` by id; `faults`: a list of callables taken first, each for one request (True: it answered)."""

    def __init__(self, port=0, *, projects=None, events=None):
        self.projects, self.events, self.logs = projects or {}, events or {}, {}
        self.faults, self.requests, self.keys = [], [], {}
        self.cut_after: list[int] | None = None
        """Events after which a stream is cut, once for each number in the list."""
        self.refusal: tuple | None = None
        self.server = ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Handler,), {"manager": self}))
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.thread.join(10)
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    manager: ScriptedManager

    def log_message(self, *_):
        pass

    def answer(self, status, document, kind="application/json"):
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, code, message, hint="", findings=()):
        self.answer(status, {"error": {"code": code, "message": message, "hint": hint, "findings": list(findings)}})

    def handle_one(self):
        manager = self.manager
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        manager.requests.append((self.command, self.path, dict(self.headers), body))
        if manager.faults and manager.faults.pop(0)(self):
            return
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        place = parts.path.removeprefix(PREFIX).strip("/").split("/")
        if manager.refusal:
            self.refuse(*manager.refusal)
        elif place == [""]:
            self.collection(body, query)
        elif place[0] not in manager.projects:
            self.refuse(404, "PROJECT_NOT_FOUND", "there is no such project")
        else:
            self.one(place, manager.projects[place[0]])

    do_GET = do_POST = handle_one  # noqa: N815

    def collection(self, body, query):
        manager = self.manager
        if self.command == "GET":
            state = query.get("state", [None])[0]
            found = [one for one in manager.projects.values() if state in (None, one["state"])]
            limit, offset = int(query["limit"][0]), int(query["offset"][0])
            self.answer(200, {"projects": found[offset : offset + limit], "total": len(found)})
            return
        key = self.headers["Idempotency-Key"]
        if key not in manager.keys:
            manager.keys[key] = next(one for one in manager.projects if one not in manager.keys.values())
        project = manager.projects[manager.keys[key]]
        project["sla"] = json.loads(body)
        self.answer(200, {"message": "a new project was started", "project": project})

    def one(self, place, project):
        manager = self.manager
        match place[1:]:
            case []:
                self.answer(200, project)
            case ["logs"]:
                self.answer(200, manager.logs.get(place[0], "").encode("utf-8", "replace"), "text/plain; charset=utf-8")
            case ["cancel"]:
                if project["state"] in ("images_ready", "failed", "cancelled"):
                    self.refuse(409, "PROJECT_DECIDED", "it has ended already", "there is nothing left to cancel")
                    return
                project["state"] = "cancelled"
                self.answer(200, project)
            case ["events"]:
                self.stream(place[0])

    def stream(self, project):
        manager = self.manager
        after = int(self.headers.get("Last-Event-ID") or 0)
        told = [one for one in manager.events[project] if one["sequence"] is None or one["sequence"] > after]
        over = manager.projects[project]["builder"] in ("none", "removed")
        if over and not any(one["sequence"] for one in told):
            self.send_response(204)
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        cut = manager.cut_after.pop(0) if manager.cut_after else None
        for number, one in enumerate(told):
            if number == cut:
                self.wfile.write(b'id: 999\ndata: {"sequence": 999, "kind"')  # in the middle of an event
                return
            head = f"id: {one['sequence']}\n" if one["sequence"] else ": keepalive\n\n"
            self.wfile.write(f"{head}event: {one['kind']}\ndata: {json.dumps(one, ensure_ascii=False)}\n\n".encode())


def status(code, body=b"<html>busy</html>"):
    def fault(handler):
        handler.answer(code, body, "text/html")
        return True

    return fault


def hang_up(handler):
    handler.close_connection = True
    handler.connection.close()
    return True


def done_but_silent(handler):
    """The request is served, and its answer is lost."""
    wfile, handler.wfile = handler.wfile, type("Sink", (), {"write": lambda *_: None, "flush": lambda *_: None})()
    faults, handler.manager.faults = handler.manager.faults, []
    length = handler.manager.requests.pop()[3]
    handler.rfile = __import__("io").BytesIO(length)
    handler.handle_one()
    handler.manager.faults = faults
    handler.wfile = wfile
    return hang_up(handler)


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)
