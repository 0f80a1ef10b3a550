"""All that a manager meets: a git host over https, a registry behind a gate; and what must be true of every project at its end."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import ssl
import sys
from dataclasses import dataclass, field

import httpx
import trustme
from tests.faults.gate import Cut, Gate, Quiet, ask_for_login, before, running
from tests.faults.service import Service, processes, wait_until
from tests.integration.test_checkout_servers import Backend, QuietServer, commit, git

from flops.registry.app import EmbeddedRegistry
from flops_wire.events import TAGGING, TERMINAL_KINDS

METHODS = (
    "set_model_data",
    "get_model",
    "get_model_parameters",
    "set_model_parameters",
    "fit_model",
    "evaluate_model",
)
FILES = {
    "model_manager.py": "import numpy\n\n\nclass ModelManager:\n"
    + "".join(f"    def {name}(self, *words): ...\n\n" for name in METHODS),
    "data_manager.py": "class DataManager:\n    def _prepare_data(self): ...\n\n    def get_data(self): ...\n",
    "requirements.txt": "numpy==1.26.4\n",
}
ACTORS = ("learner", "aggregator")
IMAGES = "acme/digits"
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
#: What says that the machine lacks something.
NOT_HERE = ("BASE_UNAVAILABLE", "INDEX_UNREACHABLE")
STATES = {"succeeded": "images_ready", "failed": "failed", "cancelled": "cancelled"}


class HostServer(Quiet, QuietServer):
    """Has what both handlers ask for."""


class Host(Backend):
    """The git host, with a gate before it."""

    server: HostServer

    def do_GET(self):
        if not self.server.gate.knows(self.headers.get("Authorization")):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            ask_for_login(self)
            return
        try:
            self.server.gate.admit(self.command, self.path)
        except Cut:
            self.close_connection = True
            return
        super().do_GET()

    do_POST = do_GET  # noqa: N815


@dataclass
class World:
    service: Service
    url: str
    git_gate: Gate
    registry: str
    """Where the registry is, past its gate."""
    gate: Gate
    work: object
    bare: object
    numbers: itertools.count = field(default_factory=itertools.count)

    def commit(self):
        """A new commit, whose images nobody has made."""
        made = commit(self.work, {"number.txt": str(next(self.numbers))})
        git(self.work, "push", "--quiet", "--mirror", str(self.bare))
        return made

    def sla(self, ref, *platforms, **more):
        wanted = list(platforms) or ["linux/amd64"]
        return {
            "ml_repo_url": self.url,
            "ml_repo_ref": ref,
            "ml_model_flavor": "sklearn",
            "supported_platforms": wanted,
            **more,
        }

    def begin(self, ref=None, *platforms, **more):
        """A project of a commit (a new one by default)."""
        return self.service.begin(self.sla(ref or self.commit(), *platforms), **more)

    # --- what is in the registry ---
    def tags(self, actor, revision):
        answer = httpx.get(f"{self.registry}/v2/{IMAGES}/{actor}/tags/list", trust_env=False)
        found = answer.json().get("tags") or () if answer.status_code == 200 else ()
        return sorted(tag for tag in found if tag.startswith(revision))

    def whole(self, actor, tag):
        """An index's digest and platforms, after everything below it was seen to be there."""
        with httpx.Client(base_url=f"{self.registry}/v2/{IMAGES}/{actor}", trust_env=False) as client:
            document, digest = _manifest(client, tag, INDEX)
            platforms = set()
            for entry in document["manifests"]:
                manifest, _ = _manifest(client, entry["digest"], MANIFEST)
                for blob in (manifest["config"], *manifest["layers"]):
                    there = client.head(f"/blobs/{blob['digest']}")
                    assert there.status_code == 200, f"{actor}:{tag} names {blob}, which is not there"
                    assert int(there.headers["content-length"]) == blob["size"]
                platforms.add(f"{entry['platform']['os']}/{entry['platform']['architecture']}")
            return digest, platforms

    def put_older(self, actor, revision):
        """Other images under all tags of a commit, as an earlier build of the same recipe would have left; their digest."""
        with httpx.Client(base_url=f"{self.registry}/v2/{IMAGES}/{actor}", trust_env=False) as client:
            document, _ = _manifest(client, revision, INDEX)
            for entry in document["manifests"]:
                manifest, _ = _manifest(client, entry["digest"], MANIFEST)
                manifest["annotations"]["older"] = "yes"
                content = json.dumps(manifest).encode()
                entry |= {"digest": "sha256:" + hashlib.sha256(content).hexdigest(), "size": len(content)}
                _put_manifest(client, entry["digest"], MANIFEST, content)
            content = json.dumps(document).encode()
            for tag in self.tags(actor, revision):
                _put_manifest(client, tag, INDEX, content)
            return "sha256:" + hashlib.sha256(content).hexdigest()

    # --- what must be true ---
    def audit(self, number, *, shared=False):
        """The project at its end: one outcome, nothing left of builders, tags whole or not there; the project.

        `shared`: other projects may have made images of the same commit.
        """
        project = self.service.over(number)
        events = self.service.events(number)
        skip_without_parts(project)
        outcomes = [one for one in events if one["kind"] in TERMINAL_KINDS]
        assert [STATES[one["kind"]] for one in outcomes] == [project["state"]], (project, events)
        assert len({one["id"] for one in events}) == len(events)
        assert [one["sequence"] for one in events] == sorted({one["sequence"] for one in events})
        for job in builders_of(events):
            assert not processes(job), f"{processes(job)} of {job} are left"
        revision = project["commit"]
        if revision:
            self._audit_images(project, revision, may_move=shared or any(one["code"] == TAGGING for one in events))
        return project

    def _audit_images(self, project, revision, *, may_move):
        wholes = {(actor, tag): self.whole(actor, tag) for actor in ACTORS for tag in self.tags(actor, revision)}
        if project["state"] != "images_ready":
            assert may_move or not wholes, f"{wholes} without the leave to tag"
            return
        for actor, image in project["images"].items():
            digest, platforms = wholes[actor, image["reference"].rpartition(":")[2]]
            assert digest == image["digest"]
            assert set(project["platforms"]) == set(image["platforms"]) <= platforms
            assert wholes[actor, revision][0] == digest, "COMMIT names them too"


def skip_without_parts(project):
    import pytest

    if project["error"] and project["error"]["code"] in NOT_HERE:
        pytest.skip(project["error"]["message"])


def builders_of(events):
    return [
        one["message"].split(" builder ")[1].split()[0]
        for one in events
        if (one["stage"], one["kind"]) == ("deploy", "started")
    ]


def _manifest(client, reference, kind):
    answer = client.get(f"/manifests/{reference}", headers={"Accept": kind})
    assert answer.status_code == 200, f"{reference}: {answer.status_code}"
    digest = "sha256:" + hashlib.sha256(answer.content).hexdigest()
    assert answer.headers["docker-content-digest"] == digest
    return answer.json(), digest


def _put_manifest(client, reference, kind, content):
    answer = client.put(f"/manifests/{reference}", content=content, headers={"Content-Type": kind})
    assert answer.status_code == 201, answer.text


@contextlib.contextmanager
def git_host(place):
    """A repository on a host with a certificate of its own: work tree, bare repository, URL, gate, certificates."""
    work, bare = place / "work", place / "served" / "Acme" / "Digits.git"
    work.mkdir(parents=True)
    bare.mkdir(parents=True)
    git(work, "init", "--quiet", "--initial-branch=main")
    git(bare, "init", "--quiet", "--bare", "--initial-branch=main")
    commit(work, FILES)
    authority, bundle = trustme.CA(), place / "ca.pem"
    known = ssl.get_default_verify_paths().cafile
    with bundle.open("wb") as file:
        if known is not None and os.path.exists(known):
            with open(known, "rb") as trusted:
                shutil.copyfileobj(trusted, file)
        file.write(authority.cert_pem.bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = HostServer(("127.0.0.1", 0), Host)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.root, server.requests, server.private, server.protocol = bare.parents[1], [], False, 2
    server.authorizations, server.redirect, server.delay, server.before = [], "", 0, lambda path: None
    server.gate = Gate()
    with running(server):
        yield work, bare, f"https://127.0.0.1:{server.server_port}/Acme/Digits.git", server.gate, bundle


@contextlib.contextmanager
def world(place, *words, embedded=False, variables_of=None, **variables):
    """A manager with a git host and a registry, each behind a gate; `embedded`: its own registry is used, without one.

    `variables_of(git host, registry host)` gives settings that need their addresses.
    """
    with (
        git_host(place / "git") as (work, bare, url, git_gate, bundle),
        EmbeddedRegistry(place / "registry") as registry,
        before(*registry.registry.host.split(":")) as (gate, address),
    ):
        variables = {"FLOPS_ALLOW_HOSTS": "127.0.0.1", "FLOPS_CA_BUNDLE": str(bundle), **variables}
        if variables_of is not None:
            variables |= variables_of(url.split("/")[2], address.split("/")[2])
        service = Service(place, *(() if embedded else ("--registry", address)), *words, **variables)
        try:
            service.start()
            there = service.places["registry"] if embedded else registry.registry.url
            yield World(service, url, git_gate, there, gate, work, bare)
        finally:
            git_gate.open()
            gate.open()
            if sys.exc_info()[0] is not None:
                sys.stderr.write(service.log.read_text()[-6000:])
            service.stop()


__all__ = ["World", "wait_until", "world"]
