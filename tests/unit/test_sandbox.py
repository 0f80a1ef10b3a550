"""Somebody else's interpreter: it runs confined, and what it makes is never taken for what Debian's makes."""

import subprocess
from dataclasses import replace

import pytest

from flops.builder import sandbox
from flops.builder.images.bytecode_layer import key
from flops.builder.images.plan import BytecodeLayer
from flops.recipe import Compression


def test_bytecode_of_a_base_image_is_never_taken_for_debians():
    debians = BytecodeLayer(title="", prefix="opt/flops/runtime", python="3.11", python_full="3.11.2", wheels=())
    foreign = replace(debians, origin="sha256:" + 64 * "1")
    other = replace(debians, origin="sha256:" + 64 * "2")
    assert len({key(one, Compression.GZIP) for one in (debians, foreign, other)}) == 3


def test_a_confined_program_sees_and_writes_what_is_named_and_nothing_else(tmp_path):
    if not sandbox.available():
        pytest.skip("bubblewrap is not installed, or this host forbids namespaces")
    secret, room = tmp_path / "secret", tmp_path / "room"
    secret.write_text("secret")
    room.mkdir()
    script = f"cat {secret}; echo out > {room}/out; echo x > /usr/x; (exec 3<>/dev/tcp/127.0.0.1/1) 2>&1; ls /"
    tree = [path for path in map(type(tmp_path), ("/usr", "/lib", "/lib64", "/bin")) if path.exists()]
    command = sandbox.confined(["/bin/bash", "-c", script], seen=tree, writable=room)
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert "secret\n" not in done.stdout
    assert "No such file" in done.stderr
    assert (room / "out").read_text() == "out\n"
    assert "Read-only file system" in done.stderr
    assert "home" not in done.stdout.split()
