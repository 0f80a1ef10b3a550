"""What a project of the service may take as its base: real servers on loopback, a name service of our own, and a count of
every connection that is made.
"""

import base64
import http.server
import json
import socket
import ssl
import threading
from collections import defaultdict

import pytest
import trustme

from flops.base import BaseContext
from flops.base.bases import Bases
from flops.errors import BaseUnavailable, BlockedAddress, FlopsError
from flops.oci.blobs import BlobStore
from flops.oci.credentials import Credential, FixedCredentials
from flops.oci.reference import Registry
from flops.platforms import Platform
from flops.progress import Silent
from flops.recipe import Recipe
from flops.repository.source import parse_source
from flops.request import Request
from flops.settings import Settings

REGISTRY, AUTH, STORE = "registry.example.org", "auth.example.org", "store.example.net"
PUBLIC = {REGISTRY: "93.184.215.14", AUTH: "93.184.215.15", STORE: "93.184.215.16"}
#: In each spelling that a reference can have.
PRIVATE = [
    "127.0.0.1", "0x7f000001", "0x7f.0x1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1",
    "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
    "[fd00::1]", "[fe80::1]", "localhost", "a.localhost", "db.internal", "registry.local",
]  # fmt: skip
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "sha256:" + "c" * 64
IMAGE = {
    "schemaVersion": 2,
    "mediaType": MANIFEST,
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": CONFIG, "size": 2},
    "layers": [],
}


class Server(http.server.ThreadingHTTPServer):
    """By default it answers 404. `seen`: Host, path and Authorization of each request; `names`: of each TLS handshake (SNI)."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen, self.names = [], []
        self.answer = lambda _request: (404, {}, b"")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self):
        server = self.server
        server.seen.append((self.headers["Host"], self.path.partition("?")[0], self.headers["Authorization"]))
        status, headers, body = server.answer(self)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """Starts HTTP servers on loopback, with TLS where a context is given."""
    servers = []

    def start(context=None):
        server = Server()
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        servers.append((server, thread))
        return server

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join(10)
        server.server_close()


class Network:
    """Names have a list of answers, one after the other; a public address is a server of ours, on loopback."""

    def __init__(self):
        self.answers, self.asked, self.dialled = defaultdict(list), [], []
        self.servers = {}
        """By public address: the port on loopback."""
        self.connect, self.lookup = socket.create_connection, socket.getaddrinfo

    def getaddrinfo(self, host, port, *arguments, **options):
        if host in self.answers:
            self.asked.append(host)
            found = self.answers[host]
            host = found.pop(0) if len(found) > 1 else found[0]
        return self.lookup(host, port, flags=socket.AI_NUMERICHOST, type=socket.SOCK_STREAM)

    def create_connection(self, address, *arguments, **options):
        host = socket.getaddrinfo(address[0], address[1], type=socket.SOCK_STREAM)[0][4][0]
        self.dialled.append(host)
        if host.startswith("127."):
            return self.connect((host, address[1]), *arguments, **options)
        if host not in self.servers:
            raise ConnectionRefusedError(111, f"nobody at {host}")
        return self.connect(("127.0.0.1", self.servers[host]), *arguments, **options)


@pytest.fixture
def network(monkeypatch):
    network = Network()
    monkeypatch.setattr(socket, "getaddrinfo", network.getaddrinfo)
    monkeypatch.setattr(socket, "create_connection", network.create_connection)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return network


@pytest.fixture
def canary():
    """Listens on loopback, inside the operator's network; nobody may connect."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.fixture
def public(serve, network, tmp_path):
    """The three public hosts as TLS servers, each with a certificate for its own name; and the authority's certificate."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    servers = {}
    for name, address in PUBLIC.items():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        servers[name] = server = serve(context)
        context.sni_callback = lambda _socket, name, _context, server=server: server.names.append(name)
        network.answers[name] = [address]
        network.servers[address] = server.server_port
    return servers


@pytest.fixture
def take(tmp_path, network):
    """Prepares a base as a builder does, for somebody who is not trusted unless `trusted` says so."""

    def prepare(base, *, trusted=False, allow_hosts=(), own=None, credentials=None):
        request = Request(
            source=parse_source("https://git.example.org/a/b", trusted=trusted),
            platforms=(Platform.LINUX_AMD64,),
            recipe=Recipe(base=base),
            allow_hosts=allow_hosts,
            registry=Registry.parse(own) if own else None,
            registry_credentials=credentials,
        )
        bundle = tmp_path / "ca.pem"
        settings = Settings(cache_dir=tmp_path / "cache", ca_bundle=bundle if bundle.exists() else None)
        with Bases(
            BaseContext(settings=settings, blobs=BlobStore(tmp_path / "cache"), request=request, reporter=Silent())
        ) as bases:
            return bases.choices()

    return prepare


def image(request):
    """The manifest of an image, whose config lies elsewhere."""
    if "/manifests/" in request.path:
        return 200, {"Content-Type": MANIFEST}, json.dumps(IMAGE).encode()
    return 307, {"Location": f"https://{STORE}/config"}, b""


@pytest.mark.parametrize("scheme", ["", "http://", "https://"])
@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_in_every_spelling(host, scheme, take, network, canary):
    with pytest.raises(BlockedAddress) as caught:
        take(f"{scheme}{host}:{canary.getsockname()[1]}/base:1", allow_hosts=("git.example.org", "10.9.9.9"))
    assert "the base image" in caught.value.message
    assert "FLOPS_ALLOW_HOSTS" in caught.value.hint
    assert (network.asked, network.dialled) == ([], [])


@pytest.mark.parametrize("found", ["127.0.0.1", "10.0.0.7", "::1", "169.254.169.254"])
def test_a_name_that_leads_inside(found, take, network, canary):
    network.answers[REGISTRY] = [found]
    with pytest.raises(BlockedAddress, match=f"leads to {found}"):
        take(f"{REGISTRY}:{canary.getsockname()[1]}/base:1")
    assert network.dialled == []


def test_a_resolver_that_changes_its_mind_is_asked_once(take, network, public, canary):
    """The connection goes to the address that was judged, under the name that was asked for."""
    network.answers[REGISTRY] = [PUBLIC[REGISTRY], "127.0.0.1"]
    with pytest.raises(BaseUnavailable, match="there is no base image"):
        take(f"{REGISTRY}:{canary.getsockname()[1]}/base:1")
    assert network.asked == [REGISTRY]
    assert set(network.dialled) == {PUBLIC[REGISTRY]}
    assert public[REGISTRY].names == [REGISTRY]
    assert public[REGISTRY].seen == [(f"{REGISTRY}:{canary.getsockname()[1]}", "/v2/base/manifests/1", None)]


def test_a_name_that_is_none(take, network):
    """It has the form of one, and can't be decoded (RFC 5891)."""
    with pytest.raises(BaseUnavailable, match="can't be used"):
        take("xn--a.example/base:1")
    assert network.dialled == []


def test_a_server_that_is_another_one_is_not_believed(take, network, public):
    network.answers[REGISTRY] = [PUBLIC[AUTH]]
    with pytest.raises(BaseUnavailable, match=r"the certificate of registry\.example\.org is for other names"):
        take(f"{REGISTRY}/base:1")
    assert public[AUTH].seen == []


def challenge(realm):
    return lambda _request: (401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="x"'}, b"")


def test_a_token_realm_is_resolved_once_too(take, network, public, canary):
    port = canary.getsockname()[1]
    public[REGISTRY].answer = challenge(f"https://{AUTH}:{port}/token")
    network.answers[AUTH] = [PUBLIC[AUTH], "127.0.0.1"]
    with pytest.raises(BaseUnavailable, match="gave no token"):
        take(f"{REGISTRY}/base:1")
    assert sorted(network.asked) == [AUTH, REGISTRY]
    assert [path for _, path, _ in public[AUTH].seen] == ["/token"]
    assert public[AUTH].names == [AUTH]


@pytest.mark.parametrize("host", [AUTH, "127.0.0.1", REGISTRY])
def test_a_token_realm_inside_is_not_asked(host, take, network, public, canary):
    """The registry itself too: its name is no excuse for another address of it."""
    port = canary.getsockname()[1]
    public[REGISTRY].answer = challenge(f"https://{host}:{port}/token")
    if host == AUTH:
        network.answers[AUTH] = ["127.0.0.1"]
    network.answers[REGISTRY] = [PUBLIC[REGISTRY], "127.0.0.1"]
    with pytest.raises((BaseUnavailable, BlockedAddress)):
        take(f"{REGISTRY}/base:1")
    assert "127.0.0.1" not in network.dialled


def test_a_redirect_is_resolved_once_too(take, network, public, canary):
    public[REGISTRY].answer = image
    network.answers[STORE] = [PUBLIC[STORE], "127.0.0.1"]
    with pytest.raises(FlopsError):
        take(f"{REGISTRY}/base:1")
    assert sorted(network.asked) == [REGISTRY, STORE]
    assert ("/config", STORE) in {(path, host) for host, path, _ in public[STORE].seen}
    assert set(network.dialled) == {PUBLIC[REGISTRY], PUBLIC[STORE]}


@pytest.mark.parametrize("found", ["127.0.0.1", "10.0.0.7"])
def test_a_redirect_inside_is_not_followed(found, take, network, public):
    public[REGISTRY].answer = image
    network.answers[STORE] = [found]
    with pytest.raises(BaseUnavailable, match="private address"):
        take(f"{REGISTRY}/base:1")
    assert set(network.dialled) == {PUBLIC[REGISTRY]}


def test_what_the_operator_lists_is_allowed(take, network, serve):
    server = serve()
    network.answers["registry.lan"] = ["127.0.0.1"]
    for allowed in ("registry.lan", "127.0.0.1"):
        with pytest.raises(BaseUnavailable, match="there is no base image"):
            take(f"http://registry.lan:{server.server_port}/base:1", allow_hosts=(allowed,))
    assert len(server.seen) == 2


def test_the_user_of_the_command_line_chooses_freely(take, serve):
    server = serve()
    with pytest.raises(BaseUnavailable, match="there is no base image"):
        take(f"127.0.0.1:{server.server_port}/base:1", trusted=True)
    assert len(server.seen) == 1


def test_behind_a_proxy_it_connects_to_what_is_not_known_here(take, network, serve, monkeypatch, canary):
    proxy = serve()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
    with pytest.raises(BaseUnavailable, match="there is no base image"):
        take(f"http://{REGISTRY}/base:1")
    assert [host for host, _, _ in proxy.seen] == [REGISTRY]
    network.answers["inside.example.org"] = ["10.0.0.7"]
    for host in ("inside.example.org", "10.0.0.7", f"127.0.0.1:{canary.getsockname()[1]}"):
        with pytest.raises(BlockedAddress):
            take(f"http://{host}{'' if ':' in host else ':80'}/base:1")
    assert len(proxy.seen) == 1


# --- who may read it ---
def basic(username, password):
    return f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"


def locked(request):
    """A registry whose images only the team may read."""
    if request.headers["Authorization"] == basic("team", "its-own"):
        return 404, {}, b""
    return 401, {"WWW-Authenticate": "Basic realm=x"}, b""


def login(host, username="team", password="its-own"):
    return FixedCredentials(by_host={host: Credential(username=username, password=password)})


def test_the_services_own_registry_is_read_with_the_projects_login_alone(take, serve):
    server = serve()
    server.answer = locked
    own = f"127.0.0.1:{server.server_port}"
    with pytest.raises(BaseUnavailable, match="refused us"):
        take(f"{own}/other/learner:1", own=own, credentials=FixedCredentials(by_host={}))
    with pytest.raises(BaseUnavailable, match="there is no base image"):
        take(f"{own}/team/base:1", own=own, credentials=login(own))
    assert [shown for *_, shown in server.seen][-1] == basic("team", "its-own")


def test_no_other_registry_is_shown_a_login(take, network, public, tmp_path, monkeypatch):
    """Neither the project's, for a host of the same name in another form, nor the one of the account that builders run as."""
    account = tmp_path / "auth.json"
    account.write_text(json.dumps({"auths": {REGISTRY: {"auth": base64.b64encode(b"operator:secret").decode()}}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(account))
    public[REGISTRY].answer = locked
    for own in (None, f"http://{REGISTRY}", f"{REGISTRY}:444"):
        with pytest.raises(BaseUnavailable, match="refused us"):
            take(f"{REGISTRY}/base:1", own=own, credentials=login(REGISTRY) if own else None)
    assert {shown for *_, shown in public[REGISTRY].seen} == {None}
