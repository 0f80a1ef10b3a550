"""The FL runtime's lists: exact, hashed, without addresses."""

import re
from importlib.resources import files

import pytest
from packaging.requirements import Requirement

LISTS = {minor: files("flops") / "resources" / f"runtime-{minor}.txt" for minor in ("3.11", "3.13")}


@pytest.mark.parametrize("minor", LISTS)
def test_every_line_pins_a_version_with_hashes(minor):
    text = LISTS[minor].read_text()
    entries = text.replace("\\\n", "").splitlines()
    pins = {}
    for entry in entries:
        if entry.startswith("#"):
            continue
        requirement, *hashes = entry.split()
        parsed = Requirement(requirement)
        assert re.fullmatch(r"==[^*,]+", str(parsed.specifier)), entry
        assert hashes, entry
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), entry
        pins[parsed.name] = str(parsed.specifier)
    assert list(pins) == sorted(pins)
    assert pins["flwr"] == "==1.41.0"
    assert {"paho-mqtt", "numpy", "protobuf"} <= pins.keys()
    assert "uv" not in pins
    assert "://" not in text
