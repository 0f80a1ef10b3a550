"""kill -9 of the embedded registry while several clients push; shared by the integration and the soak suite."""

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import httpx

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
PROGRAM = """
import sys
from pathlib import Path
from flops.registry.app import EmbeddedRegistry
with EmbeddedRegistry(Path(sys.argv[1])) as server:
    print(server.port, flush=True)
    sys.stdin.read()
"""


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Process:
    """The registry as a process of its own."""

    def __init__(self, root):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def kill(self):
        self.process.kill()
        self.process.wait(30)
        self.process.stdin.close()
        self.process.stdout.close()


@dataclass
class Acknowledged:
    """What the registry said that it has."""

    blobs: set = field(default_factory=set)
    """(repository, digest)"""
    manifests: dict = field(default_factory=dict)
    """(repository, digest) -> document"""
    tags: dict = field(default_factory=dict)
    """(repository, tag) -> digests that it may name: the last acknowledged one, and those sent after it"""
    tagged: set = field(default_factory=set)
    """(repository, tag) that were acknowledged once"""
    yes: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released with every acknowledgement."""


def push(web, repository, rng, said):
    """Image after image, each under a moving tag, until the registry is gone."""
    while True:
        blobs = [rng.randbytes(rng.choice([1, 1000, 70_000, 400_000])) for _ in range(2)]
        for blob in blobs:
            digest, half = digest_of(blob), len(blob) // 2
            at = web.post(f"/v2/{repository}/blobs/uploads/").headers["location"]
            if rng.random() < 0.5 and half:
                at = web.patch(at, content=blob[:half], headers={"Content-Range": f"0-{half - 1}"}).headers["location"]
            else:
                half = 0
            if web.put(at, params={"digest": digest}, content=blob[half:]).status_code == 201:
                said.blobs.add((repository, digest))
                said.yes.release()
        entries = [{"mediaType": "application/x", "digest": digest_of(blob), "size": len(blob)} for blob in blobs]
        document = json.dumps(
            {"schemaVersion": 2, "mediaType": MANIFEST, "config": entries[0], "layers": entries[1:]}
        ).encode()
        digest, tag = digest_of(document), rng.choice(["a", "b"])
        for reference in (digest, tag):
            if reference == tag:
                said.tags.setdefault((repository, tag), []).append(digest)
            answer = web.put(
                f"/v2/{repository}/manifests/{reference}", content=document, headers={"Content-Type": MANIFEST}
            )
            assert answer.status_code == 201, answer.text
            said.manifests[repository, digest] = document
            said.yes.release()
            if reference == tag:
                said.tags[repository, tag] = [digest]
                said.tagged.add((repository, tag))


def push_until_killed(process, round_, said, writers):
    """Writers push into repositories of their own; the kill comes at a moment of its own in each round."""
    said.yes = threading.Semaphore(0)

    def one(number):
        web = httpx.Client(base_url=process.url, timeout=30, trust_env=False)
        with web, contextlib.suppress(httpx.TransportError):  # killed
            push(web, f"r/{number}", random.Random(f"{round_}/{number}"), said)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    rng = random.Random(round_)
    for _ in range(rng.randint(1, 30)):
        assert said.yes.acquire(timeout=60)
    time.sleep(rng.uniform(0, 0.01))  # somewhere in what is under way now
    process.kill()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def check(url, said, *, blobs):
    """All that was acknowledged is readable and right."""
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as web:
        for repository, digest in blobs:
            answer = web.get(f"/v2/{repository}/blobs/{digest}")
            assert answer.status_code == 200, (repository, digest)
            assert digest_of(answer.content) == digest
        for (repository, digest), document in said.manifests.items():
            answer = web.get(f"/v2/{repository}/manifests/{digest}")
            assert (answer.status_code, answer.content) == (200, document), (repository, digest)
        for (repository, tag), digests in said.tags.items():
            answer = web.get(f"/v2/{repository}/manifests/{tag}")
            assert answer.status_code == 200 or (repository, tag) not in said.tagged
            if answer.status_code == 200:
                assert answer.headers["docker-content-digest"] in digests
                assert digest_of(answer.content) in digests


def run(root, kills, *, writers=4):
    """So many lives of a registry; the numbers of acknowledged blobs and manifests."""
    said = Acknowledged()
    seen, documents = set(), 0
    for round_ in range(kills):
        process = Process(root)
        try:
            # What the former life acknowledged, read from the next one; the whole once more at the end.
            new = Acknowledged(
                manifests=dict(list(said.manifests.items())[documents:]), tags=said.tags, tagged=said.tagged
            )
            check(process.url, new, blobs=said.blobs - seen)
            seen, documents = set(said.blobs), len(said.manifests)
            push_until_killed(process, round_, said, writers)
        finally:
            process.kill()
    process = Process(root)
    try:
        check(process.url, said, blobs=said.blobs)
        lives = list((root / "uploads").iterdir())
        assert [len(list(life.iterdir())) for life in lives] == [1], "uploads of former lives are removed"
    finally:
        process.kill()
    for path in (root / "blobs" / "sha256").iterdir():
        with path.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == path.name, "no blob is ever seen half"
    return len(said.blobs), len(said.manifests)


def survives(root, *, kills):
    """Kill it that often; what was acknowledged is right (`run` sees to that), and it was enough to mean something."""
    blobs, manifests = run(root, kills)
    sys.stdout.write(f"{kills} kills, {blobs} blobs and {manifests} manifests acknowledged\n")
    assert blobs > kills
    assert manifests > kills // 4
