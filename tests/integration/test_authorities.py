"""FLOPS_CA_BUNDLE adds to what the machine trusts for the programs too that take one file of certificates instead."""

import shutil

import pytest
import trustme
from tests.tls import serving

from flops.base.debian import apt
from flops.errors import BaseUnavailable, CloneFailed, FlopsError, IndexUnreachable
from flops.locking.lock import Locker
from flops.platforms import Platform
from flops.repository.checkout import resolve_commit
from flops.repository.source import parse_source

pytestmark = pytest.mark.integration

SYSTEM, OWN, FOREIGN = trustme.CA(), trustme.CA(), trustme.CA()


@pytest.fixture(autouse=True)
def _machine(tmp_path, monkeypatch):
    """One authority is trusted by the machine; git takes no other file."""
    SYSTEM.cert_pem.write_to_path(str(tmp_path / "system.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.delenv("GIT_SSL_CAINFO", raising=False)


@pytest.fixture
def own(tmp_path):
    OWN.cert_pem.write_to_path(str(tmp_path / "own.pem"))
    return tmp_path / "own.pem"


def git(host, own, place):
    resolve_commit(parse_source(f"https://{host}/acme/digits"), ca_bundle=own)


def uv(host, own, place):
    locker = Locker(place / "cache", index_url=f"https://{host}/simple", ca_bundle=own, retries=0)
    locker.lock(["plain"], platform=Platform.LINUX_AMD64, python="3.11.2", glibc=(2, 36))


def apt_get(host, own, place):
    if shutil.which("apt-get") is None:
        pytest.skip("apt is not installed")
    mirror = apt.mirror(main=f"https://{host}/debian", ca_bundle=own)
    (place / "apt").mkdir()
    apt.AptRoot(place / "apt", mirror=mirror, suite="bookworm", platform=Platform.LINUX_AMD64).update()


@pytest.mark.parametrize(("ask", "agent"), [(git, "git/"), (uv, "uv/"), (apt_get, "Debian APT")])
@pytest.mark.parametrize("authority", [SYSTEM, OWN], ids=["system", "bundle"])
def test_both_are_trusted(authority, ask, agent, own, tmp_path):
    agents = []
    with serving(authority, "127.0.0.1", status=404, agents=agents) as host, pytest.raises(FlopsError):
        ask(host, own, tmp_path)  # it gets as far as an answer
    assert any(one.startswith(agent) for one in agents)


@pytest.mark.parametrize(("ask", "error"), [(git, CloneFailed), (uv, IndexUnreachable), (apt_get, BaseUnavailable)])
def test_nobody_else_is(ask, error, own, tmp_path):
    agents = []
    with serving(FOREIGN, "127.0.0.1", status=404, agents=agents) as host, pytest.raises(error) as caught:
        ask(host, own, tmp_path)
    assert "certificate" in caught.value.message.lower()
    assert host in caught.value.message
    assert "FLOPS_CA_BUNDLE" in caught.value.hint
    assert agents == []
