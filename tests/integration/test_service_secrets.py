"""Credentials of the service stand nowhere but where they are used: one sentinel each, and everything is searched."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import threading
import time
import zlib
from pathlib import Path

import pytest
from tests.faults import builders
from tests.faults.world import world as made

from flops_wire.manager import JOB_ID, JOB_TOKEN

pytestmark = pytest.mark.integration

SENTINELS = {name: f"sentinel-of-{name}-b1946ac92492d2347c62" for name in ("api", "git", "registry")}
USER = "robot"
#: A layer that is larger holds wheels or the base, bytes of somebody else's.
LAYER = 4 * 1024 * 1024


def variables(git, registry):
    def one(host, name):
        return json.dumps({"acme": {"host": host, "username": USER, "password": SENTINELS[name]}})

    return {
        "FLOPS_AUTH": "token",
        "FLOPS_API_TOKEN": SENTINELS["api"],
        "FLOPS_GIT_CREDENTIALS": one(git, "git"),
        "FLOPS_REGISTRY_CREDENTIALS": one(registry, "registry"),
    }


class Witness:
    """Looks at every process, as often as it can: at command lines, and at what builders have in their environment."""

    def __init__(self):
        self.words, self.environments = set(), {}
        self.done = False
        self.thread = threading.Thread(target=self._work)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done = True
        self.thread.join(20)

    def _work(self):
        while not self.done:
            for place in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    words = (place / "cmdline").read_bytes()
                    self.words.add(words)
                    environment = (place / "environ").read_bytes()
                    same = words == (place / "cmdline").read_bytes()  # no other program was begun in between
                    if same and JOB_ID.encode() in environment:
                        self.environments.setdefault(words, set()).update(environment.split(b"\0"))
            time.sleep(0.05)


def forms(secret, user=USER):
    """As it is, and as HTTP carries it."""
    pair = base64.b64encode(f"{user}:{secret}".encode())
    return secret.encode(), pair, base64.b64encode(secret.encode()).rstrip(b"=")


def files(*roots, since=0.0):
    for root in roots:
        for path in Path(root).rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink() and path.stat().st_mtime >= since:
                    yield path


def inflated(data):
    """A chain of gzip members."""
    pieces = []
    while data[:2] == b"\x1f\x8b":
        member = zlib.decompressobj(31)
        pieces.append(member.decompress(data))
        data = member.unused_data
    return b"".join(pieces)


def test_no_credential_stands_anywhere_else(tmp_path):
    (tmp_path / "tmp").mkdir()
    begun = time.time()
    options = {"variables_of": variables, "TMPDIR": str(tmp_path / "tmp")}
    with Witness() as witness, made(tmp_path, "--verbose", **options) as world:
        world.git_gate.login, world.gate.login = (USER, SENTINELS["git"]), (USER, SENTINELS["registry"])
        service = world.service
        assert service.client.get("/api/flops/projects", headers={"Authorization": "Bearer x"}).status_code == 401
        names = {"git_credential": "acme", "registry_credential": "acme", "verbose": True}
        world.git_gate.close(builders.is_fetch)
        number = service.begin(world.sla(world.commit(), **names))
        with service.watch(number) as watch:
            world.git_gate.wait()
            environment = Path(f"/proc/{watch.builder()}/environ").read_bytes().split(b"\0")
            world.git_gate.open()
            project = world.audit(number)
        assert project["state"] == "images_ready", project["error"]
        (token,) = [one.partition(b"=")[2] for one in environment if one.startswith(JOB_TOKEN.encode())]
        failing = service.begin(world.sla("no-such-branch", **names))
        assert world.audit(failing)["error"]["code"] == "REF_NOT_FOUND"
        wrong = world.sla(world.commit())  # without its credential: git is refused, and says so
        assert world.audit(service.begin(wrong))["error"]["code"] == "CLONE_AUTH"
        told = [service.events(number), service.project(number), service.logs(number), service.logs(failing)]
        told += [service.client.get(path).text for path in ("/metrics", "/healthz", "/api/flops/projects")]
        cache = service.environment.get("FLOPS_CACHE_DIR", Path.home() / ".cache" / "flops")
        service.end(signal.SIGTERM)
    secrets = [form for secret in SENTINELS.values() for form in forms(secret)] + [token]
    for secret in secrets:
        assert secret not in json.dumps(told).encode()
        assert not [words for words in witness.words if secret in words]
    for path in files(tmp_path / "data", tmp_path / "registry", tmp_path / "tmp", cache, since=begun):
        data = path.read_bytes()
        searched = data + (inflated(data) if len(data) < LAYER else b"")
        assert not [secret for secret in secrets if secret in searched], path
    log = service.log.read_bytes()
    assert not [secret for secret in secrets if secret in log]
    _only_git_knows_its_password(witness)


def _only_git_knows_its_password(witness):
    """A builder has its attempt's token; the rest it gets with its job, and hands each to the one program that needs it."""
    assert witness.environments
    for words, variables in witness.environments.items():
        held = b"\n".join(variables)
        for name in ("api", "registry"):
            assert not [form for form in forms(SENTINELS[name]) if form in held], (name, words)
        if any(form in held for form in forms(SENTINELS["git"])):
            programs = {os.path.basename(word) for word in words.split(b"\0")}
            # git, behind a program of ours that sets its limits, and what it starts itself
            assert programs & {b"git", b"git-remote-https"}, words
