"""What every client trusts, and failures of certificates in words: against TLS on loopback."""

import gc
import shutil
import ssl
import subprocess
import warnings
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import trustme
from tests.tls import serving

from flops import http
from flops.base import standalone
from flops.cli.manager_client import ManagerClient
from flops.compat.broker import BrokerAddress, Listener, Publisher
from flops.errors import BadSetting, FlopsError, RegistryRefused
from flops.http import Retry, Transient
from flops.job.attempt import AttemptClient
from flops.locking.index import Index
from flops.locking.lock import LockedWheel
from flops.oci.client import RegistryClient
from flops.oci.reference import Registry
from flops.orchestrators.oakestra_api import OakestraApi
from flops.service.health import check_registry
from flops.settings import Settings
from flops.wheels.ranges import Ranges
from flops.wheels.wheel_cache import WheelCache

SYSTEM, OWN, FOREIGN = trustme.CA(), trustme.CA(), trustme.CA()


@pytest.fixture
def own(tmp_path):
    OWN.cert_pem.write_to_path(str(tmp_path / "own.pem"))
    return tmp_path / "own.pem"


@pytest.fixture(params=["file", "directory"])
def system(request, tmp_path, monkeypatch):
    """The machine trusts one authority alone, by a file or by a directory as OpenSSL has them."""
    place = tmp_path / "system"
    place.mkdir()
    SYSTEM.cert_pem.write_to_path(str(place / "file.pem"))
    by_file = request.param == "file"
    if not by_file:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed")
        subprocess.run(["openssl", "rehash", place], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(place / "file.pem") if by_file else str(place / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(place / "none") if by_file else f"{place / 'none'}:{place}")


def test_a_bundle_adds_to_what_the_machine_trusts(system, own, tmp_path):
    file = http.authorities(own, tmp_path)
    alone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    alone.load_verify_locations(file)
    for authority, reached in ((SYSTEM, True), (OWN, True), (FOREIGN, False)):
        with serving(authority, "127.0.0.1") as host, http.client(own) as ours, httpx.Client(verify=alone) as program:
            for client in (ours, program):
                if reached:
                    assert client.get(f"https://{host}/").status_code == 200
                    continue
                with pytest.raises(httpx.ConnectError) as caught:
                    client.get(f"https://{host}/")
                assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value)


def test_without_a_bundle_the_machine_is_asked_alone(system):
    with serving(SYSTEM, "127.0.0.1") as host, http.client() as client:
        assert client.get(f"https://{host}/").status_code == 200
    with serving(OWN, "127.0.0.1") as host, http.client() as client, pytest.raises(httpx.ConnectError):
        client.get(f"https://{host}/")


def test_a_machine_without_authorities_has_those_of_the_web(monkeypatch, tmp_path, own):
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    assert len(http.trust(None).get_ca_certs()) > 50
    assert http.authorities(own, tmp_path).read_text().count("BEGIN CERTIFICATE") > 50


@pytest.mark.parametrize(
    "content", [None, "no certificate", "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----"]
)
def test_a_bundle_that_can_not_be_read_is_told(tmp_path, content):
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_text(content)
    for use in (lambda: http.trust(bundle), lambda: http.client(bundle), lambda: http.authorities(bundle, tmp_path)):
        with pytest.raises(BadSetting, match=r"ca\.pem") as caught:
            use()
        assert "FLOPS_CA_BUNDLE" in caught.value.hint


def wheel(host):
    url = f"https://{host}/plain-1.0-py3-none-any.whl"
    return LockedWheel(name="plain", version="1.0", filename=url.rpartition("/")[2], url=url, sha256="0" * 64, size=9)


def oakestra(host, own):
    api = OakestraApi(f"https://{host}", username="ann", password="no", authorities=own)
    try:
        api.login()
    finally:
        api.close()


def attempt(host, own):
    with AttemptClient(f"https://{host}", "token", ca_bundle=own) as one:
        one.job()


def wheels(host, own):
    with WheelCache(own.parent / "wheels", ca_bundle=own) as cache:
        cache.fetch(wheel(host))


def ranges(host, own):
    with Ranges(own, None) as one, WheelCache(own.parent / "wheels") as cache:
        one.open(wheel(host), cache)


def manager(host, own):
    with ManagerClient.of(f"https://{host}", Settings(ca_bundle=own)) as one:
        one.page()


def registry(host, own):
    with RegistryClient(Registry.parse(f"https://{host}"), verify=own) as one:
        one.ping()


def publisher(host, own):
    Publisher(BrokerAddress.parse(f"mqtts://{host}", port=1), ca_bundle=own).publish("topic", "text")


def listener(host, own):
    with Listener(BrokerAddress.parse(f"mqtts://{host}", port=1), ["t"], lost=print, back=print, ca_bundle=own):
        pass


def swept(connect):
    """Where a handshake fails, paho leaves its socket to the collector, which warns of it."""

    def call(host, own):
        with pytest.raises(FlopsError) as caught:
            connect(host, own)
        failure = type(caught.value)(caught.value.message, hint=caught.value.hint)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del caught
            gc.collect()
        raise failure

    return call


def python(host, own):
    why, answered = standalone._head(f"https://{host}/python.tar.gz", own)
    assert not answered
    raise BadSetting(why, hint=why)


CLIENTS = {
    "registry": registry,
    "index": lambda host, own: Index(f"https://{host}", ca_bundle=own).knows("plain"),
    "wheels": wheels,
    "ranges": ranges,
    "standalone": python,
    "attempt": attempt,
    "manager": manager,
    "oakestra": oakestra,
    "publisher": swept(publisher),
    "listener": swept(listener),
}
TODAY = datetime.now(UTC)
CERTIFICATES = {
    "unknown": ((FOREIGN, "127.0.0.1"), {}, "nobody trusts", "set FLOPS_CA_BUNDLE"),
    "expired": ((OWN, "127.0.0.1"), {"not_after": TODAY - timedelta(days=1)}, "has expired", f"{TODAY:%Y-}"),
    "early": ((OWN, "127.0.0.1"), {"not_before": TODAY + timedelta(days=1)}, "not valid yet", f"{TODAY:%Y-}"),
    "names": ((OWN, "other.example.test"), {}, "other names", "a name that the certificate holds"),
}


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("kind", CERTIFICATES)
def test_a_certificate_that_is_not_trusted_is_told_with_host_and_remedy(kind, name, own):
    issued, times, said, hint = CERTIFICATES[kind]
    with serving(*issued, **times) as host, pytest.raises(FlopsError) as caught:
        CLIENTS[name](host, own)
    assert said in caught.value.message
    assert host in caught.value.message
    assert hint in caught.value.hint


def test_the_registrys_health_names_its_certificate():
    with (
        serving(FOREIGN, "127.0.0.1") as host,
        pytest.raises(FlopsError, match=f"certificate of {host}.*FLOPS_CA_BUNDLE"),
    ):
        check_registry(f"https://{host}")


def test_a_client_of_ours_goes_through_no_proxy_to_this_machine(monkeypatch, own):
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with serving(OWN, "127.0.0.1") as host, http.client(own) as client:
        assert client.get(f"https://{host}/").status_code == 200
        with pytest.raises(httpx.ConnectError):
            client.get("https://elsewhere.example.test/")


# --- pauses that servers ask for ---
def test_a_longer_pause_is_obeyed_as_long_as_there_is_patience():
    waited, asked = [], [45.0, 120.0]

    def operation():
        if not asked:
            return "done"
        raise Transient(RegistryRefused("busy"), after=asked.pop(0))

    assert Retry(sleep=waited.append, patience=165).run(operation) == "done"
    assert waited == [45, 120]


@pytest.mark.parametrize("asked", [[301.0], [200.0, 101.0]])
def test_more_than_that_ends_at_once_with_the_number(asked):
    waited, last = [], asked[-1]

    def operation():
        raise Transient(RegistryRefused("busy", hint="see its log"), after=asked.pop(0))

    with pytest.raises(RegistryRefused, match=f"busy.*{last:.0f} s .Retry-After") as caught:
        Retry(sleep=waited.append).run(operation)
    assert f"{last:.0f} s" in caught.value.hint
    assert (asked, waited) == ([], [200.0][: len(waited)])
