"""A learner started from its image's files, without a container engine; shared by integration tests."""

import os
import select
import shutil
import subprocess
import time

import pytest

from flops.oci.image import parse_config, parse_manifest
from flops.platforms import Platform

#: Seconds until a learner that was started says that it waits.
SOON = 120


def start_learner(layout, result, root):
    """Start the learner from its image's files as 65532 in a read-only root, without aggregator; its lines up to its wait."""
    for program in ("bwrap", "tar"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    digest = result["images"]["learner"]["platforms"][Platform.host().value]["digest"]
    manifest = parse_manifest(layout.blobs.read(digest))
    config = parse_config(layout.blobs.read(manifest.config.digest))
    root.mkdir()
    for layer in manifest.layers:
        subprocess.run(
            ["tar", "-xzf", layout.blobs.path(layer.digest), "-C", root, "--no-same-owner"], check=True, timeout=300
        )
    confined = ["--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--unshare-all"]
    confined += ["--uid", "65532", "--gid", "65532", "--clearenv", "--chdir", config.working_directory]
    variables = [word for name, value in config.environment.items() for word in ("--setenv", name, value)]
    # port 9 of this sandbox: nobody listens, so the learner waits
    words = [*config.entrypoint, "sample", "-", "-", "127.0.0.1:9", "-"]
    with subprocess.Popen(
        ["bwrap", "--die-with-parent", *map(str, confined), *variables, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as child:
        try:
            return lines_until(child, "waiting for the aggregator")
        finally:
            child.kill()
            shutil.rmtree(root)


def lines_until(child, last):
    end = time.monotonic() + SOON
    text = b""
    while last.encode() not in text:
        readable, _, _ = select.select([child.stdout], [], [], max(0.0, end - time.monotonic()))
        assert readable, f"no {last!r} within {SOON} s:\n{text.decode()}"
        piece = os.read(child.stdout.fileno(), 65536)
        assert piece, f"ended with {child.wait()}:\n{text.decode()}"
        text += piece
    return text.decode().splitlines()
