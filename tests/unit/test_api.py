"""The Python API, as a program imports it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.unit.test_preflight import index, repository, settings  # noqa: F401 - fixtures

import flops
from flops.errors import FlopsError, SourceError, UsageError


def test_check_is_what_the_command_line_reports(index, settings, repository):  # noqa: F811
    request = repository("numpy\n")
    report = flops.check(request.source.directory, platforms=["linux/amd64"], settings=settings)
    assert [wheel.name for lock in report.locks.values() for wheel in lock.wheels] == ["numpy"]
    assert report.to_json()["repository"] == "local/digits"


def test_errors_have_a_code_and_a_hint(settings, tmp_path):  # noqa: F811
    with pytest.raises(SourceError) as caught:
        flops.check(tmp_path / "nowhere", platforms=["linux/amd64"], settings=settings)
    assert (caught.value.code, caught.value.exit_code) == ("BAD_URL", 3)
    with pytest.raises(UsageError, match="exclude each other"):
        flops.build(tmp_path, registry="127.0.0.1:1", load=True, settings=settings)
    with pytest.raises(FlopsError, match="no Python version"):
        flops.check(tmp_path, python="three", settings=settings)


def test_a_registry_is_a_value():
    registry = flops.Registry.parse("registry.example:5000/team")
    assert (registry.host, str(registry)) == ("registry.example:5000", "registry.example:5000/team")
    with pytest.raises(AttributeError, match="no attribute 'deploy'"):
        flops.deploy  # noqa: B018


def test_the_package_alone_imports_nothing():
    program = "import sys, flops; print(sorted(name for name in sys.modules if name.startswith('flops')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['flops', 'flops.version']"
