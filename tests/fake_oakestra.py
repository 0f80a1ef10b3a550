"""Oakestra's root API as it was observed, on loopback: every oddity that a client has to live with, and a record of what it was asked."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_NAME = re.compile(r"[a-zA-Z0-9]{1,30}")
_INTEGERS = ("memory", "vcpus", "storage")


class FakeOakestra:
    """Use as a context manager. Its state is open to tests: `step` moves services on, `expire` voids tokens."""

    username, password = "Admin", "sentinel-password"

    def __init__(self) -> None:
        self.applications: dict[str, dict] = {}
        self.services: dict[str, dict] = {}
        self.requests: list[dict] = []
        self.faults: list[tuple[str, str, int]] = []
        """(method, path pattern, status): the next such request is answered so; status 0 does the work and drops the answer."""
        self.access: set[str] = set()
        self.refresh: set[str] = set()
        self.capacity = True
        self.insert_fails = False
        self._count = 0
        self._lock = threading.RLock()
        self._names: dict[str, str] = {}
        """What stands for an id or token in the record."""

    def __enter__(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: an answer in two waits for an acknowledgement

            def log_message(self, *_) -> None:
                pass

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                with fake._lock:
                    answer = fake._answer(self.command, self.path, self.headers.get("authorization") or "", body)
                    fake.requests[-1]["status"] = answer[0] if answer else None
                if answer is None:
                    self.close_connection = True
                    return
                status, kind, text = answer
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_DELETE = _serve  # noqa: N815 - http.server's names

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    # --- what tests do to it ---

    def expire(self, *, refresh: bool = False) -> None:
        """Access tokens last ten minutes; refresh tokens longer."""
        self.access.clear()
        if refresh:
            self.refresh.clear()

    def service(self, job: str) -> dict:
        return next(one for one in self.services.values() if one["microservice_name"] == job)

    def set(self, job: str, status: str, detail: str = "", logs: str = "") -> None:
        """The service's instance reports this."""
        service = self.service(job)
        service["status"] = status
        service["instance_list"][-1] |= {"status": status, "status_detail": detail, "logs": logs[-1024:]}

    def step(self, job: str) -> str:
        """What Oakestra does next by itself: place, start; and start again what has failed, for ever."""
        service = self.service(job)
        order = {
            "REQUESTED": "CLUSTER_SCHEDULED",
            "CLUSTER_SCHEDULED": "NODE_SCHEDULED",
            "NODE_SCHEDULED": "RUNNING",
            "DEAD": "NODE_SCHEDULED",
            "FAILED": "NODE_SCHEDULED",
        }
        before = service["status"]
        if before == "REQUESTED":
            if not self.capacity:
                service["status"] = "NoActiveClusterWithCapacity"
                return service["status"]
            number = service["next_instance_progressive_number"]
            service["next_instance_progressive_number"] += 1
            service["instance_list"].append({"instance_number": number, "cluster_id": "c", "logs": ""})
        self.set(job, order.get(before, before))
        return service["status"]

    def recorded(self) -> list[dict]:
        """The requests with names for ids and tokens: the same in every run."""
        text = json.dumps(self.requests)
        for value, name in self._names.items():
            text = text.replace(value, "{" + name + "}")
        return json.loads(text)

    # --- what it answers ---

    def _answer(self, method, path, authorization, body):
        bearer = authorization.removeprefix("Bearer ")
        document = json.loads(body) if body else None
        self.requests.append({"method": method, "path": path, "bearer": bearer, "body": document})
        dropped = False
        for fault in self.faults:
            if fault[0] == method and re.fullmatch(fault[1], path):
                self.faults.remove(fault)
                if fault[2]:
                    return self._error(fault[2])
                dropped = True
                break
        answer = self._auth(method, path, bearer, document)
        if answer is None:
            if bearer not in self.access:
                key = "message" if "/service" in path else "msg"
                return self._json(
                    401, {key: "Missing authentication token" if key == "message" else "Missing Authorization Header"}
                )
            answer = self._routed(method, path, document)
        return None if dropped else answer

    def _auth(self, method, path, bearer, document):
        if (method, path) == ("POST", "/api/auth/login"):
            if not isinstance(document, dict):
                return self._error(400)
            if "username" not in document or "password" not in document:
                return self._error(500)
            if (document["username"], document["password"]) != (self.username, self.password):
                return self._error(401)
            access, refresh = self._new("token"), self._new("refresh_token")
            self.access.add(access)
            self.refresh.add(refresh)
            return self._json(200, {"token": access, "refresh_token": refresh})
        if (method, path) == ("POST", "/api/auth/refresh"):
            if bearer not in self.refresh:
                return self._json(401, {"msg": "Token has expired"})
            access = self._new("token")
            self.access.add(access)
            return self._json(200, {"token": access})
        return None

    def _routed(self, method, path, document):
        routes = [
            ("POST", r"/api/application/", self._register),
            ("GET", r"/api/applications/", lambda: self._twice(list(self.applications.values()))),
            ("GET", r"/api/application/([^/]+)", self._application),
            ("DELETE", r"/api/application/([^/]+)", self._delete_application),
            ("POST", r"/api/service/", self._create),
            ("GET", r"/api/service/([^/]+)", self._service),
            ("GET", r"/api/services/([^/]+)", self._services),
            ("POST", r"/api/service/([^/]+)/instance", self._instance),
            ("DELETE", r"/api/service/([^/]+)/instance/([^/]+)", self._delete_instance),
            ("DELETE", r"/api/service/([^/]+)", self._delete_service),
            ("GET", r"/api/clusters/active", lambda: (200, "text/html", b"[]")),
        ]
        for verb, pattern, serve in routes:
            if verb == method and (match := re.fullmatch(pattern, path)):
                return serve(
                    *match.groups(),
                    **({"document": document} if path in ("/api/application/", "/api/service/") else {}),
                )
        return self._error(404)

    def _register(self, document):
        problem = self._schema(document)
        if problem:
            return self._error(problem)
        wanted = document["applications"][0]
        for one in self.applications.values():
            if all(one[k] == wanted[k] for k in ("application_name", "application_namespace")):
                return self._error(409)
        number = self._new("application")
        self.applications[number] = {**wanted, "applicationID": number, "microservices": []}
        return self._twice(list(self.applications.values()))

    def _application(self, number):
        return self._json(200, None) if number in self.applications else self._error(404)

    def _delete_application(self, number):
        if self.applications.pop(number, None) is None:
            return self._error(501)
        self.services = {n: one for n, one in self.services.items() if one["applicationID"] != number}
        return self._json(200, {"message": "Application deleted"})

    def _create(self, document):
        if document == {}:
            return self._error(404)
        if self._schema(document):
            return self._error(400)
        application = self.applications.get(document["applications"][0]["applicationID"])
        if application is None:
            return self._error(400)
        if self.insert_fails:
            failed = [{"service_name": "x", "status": 500}]
            return self._json(200, {"job_id": "", "deployed_services": [], "failed_services": failed})
        [wanted] = document["applications"][0]["microservices"]
        same = [one for one in self.services.values() if one["microservice_name"] == wanted["microservice_name"]]
        number = same[0]["microserviceID"] if same else self._new("service")
        self.services[number] = {
            **wanted,
            "microserviceID": number,
            "applicationID": application["applicationID"],
            "instance_list": [],
            "next_instance_progressive_number": 0,
        }
        if number not in application["microservices"]:
            application["microservices"].append(number)
        deployed = [{"service_name": wanted["microservice_name"], "status": 200}]
        return self._json(200, {"job_id": number, "deployed_services": deployed, "failed_services": []})

    def _service(self, number):
        return self._twice(self.services[number]) if number in self.services else self._error(404)

    def _services(self, application):
        if application not in self.applications:
            return self._error(404)
        return self._twice([one for one in self.services.values() if one["applicationID"] == application])

    def _instance(self, number):
        if service := self.services.get(number):
            if service.get("status"):  # a second one
                progressive = service["next_instance_progressive_number"]
                service["next_instance_progressive_number"] += 1
                service["instance_list"].append({"instance_number": progressive, "status": "RUNNING"})
            else:
                service["status"] = "REQUESTED"
        return self._json(200, {"message": "ok"})

    def _delete_instance(self, number, instance):
        if not instance.isdecimal():
            return self._error(500)
        if service := self.services.get(number):
            service["instance_list"] = [
                one for one in service["instance_list"] if one["instance_number"] != int(instance)
            ]
        return self._json(200, {"message": "ok"})

    def _delete_service(self, number):
        service = self.services.pop(number, None)
        if service is None:
            return self._error(500)
        self.applications[service["applicationID"]]["microservices"].remove(number)
        return self._json(200, {"message": "Job deleted"})

    def _schema(self, document):
        if not isinstance(document, dict) or not {"sla_version", "customerID", "applications"} <= document.keys():
            return 422
        if document["sla_version"] != "v2.0":
            return 500
        [application] = document["applications"]
        names = [application["application_name"], application["application_namespace"]]
        for service in application["microservices"]:
            names += [service["microservice_name"], service["microservice_namespace"]]
            if any(type(service.get(key)) is not int for key in _INTEGERS) or service["microserviceID"]:
                return 422
            if not all(isinstance(word, str) for word in [*service["cmd"], *service["environment"], service["code"]]):
                return 422
        return 0 if all(_NAME.fullmatch(name) for name in names) else 422

    def _new(self, name: str) -> str:
        self._count += 1
        value = f"{name.replace('_', '')}{self._count:04d}x"
        seen = sum(known == name or known.startswith(f"{name}-") for known in self._names.values())
        self._names[value] = f"{name}-{seen + 1}" if seen else name
        return value

    def _json(self, status, document):
        return status, "application/json", json.dumps(document).encode()

    def _twice(self, document):
        return self._json(200, json.dumps(document))

    def _error(self, status):
        return self._json(status, {"code": status, "status": "No reason is told"})
