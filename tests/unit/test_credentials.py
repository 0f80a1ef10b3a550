"""Who we are at a registry: credential files, helpers, the token flow, and where credentials never go."""

import base64
import contextlib
import io
import ipaddress
import json
import socket
import threading
import time
import urllib.parse

import httpx
import pytest

from flops.errors import AuthRealm, RegistryAuth, RegistryRefused, RegistryUnreachable
from flops.http import Retry
from flops.oci.authentication import challenges, is_private, merge_scopes
from flops.oci.client import RegistryClient
from flops.oci.credentials import Credential, FixedCredentials, UserCredentials
from flops.oci.reference import Reference, Registry

QUICK = Retry(sleep=lambda _seconds: None)
ANN = Credential(username="ann", password="s3cret-password")
ADDRESSES = {
    "registry.example.org": "93.184.216.34",
    "auth.example.org": "93.184.216.35",
    "inside.example.org": "10.0.0.7",
    "example.org": "93.184.216.36",
    "elsewhere.example.net": "93.184.216.37",
    "registry.lan": "192.168.1.2",
    "auth.lan": "192.168.1.3",
}


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """No test asks a name server."""

    def lookup(host, port, *args, **kwargs):
        try:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ADDRESSES.get(host) or str(_literal(host)), 0))]
        except ValueError:
            raise socket.gaierror(host) from None

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


def _literal(host):
    return ipaddress.ip_address(host)


# --- files ---
def auth(user, password):
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def files(tmp_path, *documents):
    paths = []
    for number, document in enumerate(documents):
        path = tmp_path / f"{number}.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        paths.append(path)
    return UserCredentials(files=tuple(paths))


@pytest.mark.parametrize(
    "key", ["registry.example.org:5000", "https://registry.example.org:5000", "http://registry.example.org:5000/v1/"]
)
def test_auths(tmp_path, key):
    found = files(tmp_path, {"auths": {key: auth("ann", "a:b")}}).find("registry.example.org:5000")
    assert found == Credential(username="ann", password="a:b")
    assert files(tmp_path, {"auths": {key: auth("ann", "a:b")}}).find("registry.example.org") is None


def test_a_namespace_may_have_its_own(tmp_path):
    entries = {"a.example": "host", "a.example/team": "team", "a.example/team/deep": "deep", "b.example/team": "other"}
    for order in (list(entries), list(reversed(entries))):
        found = files(tmp_path, {"auths": {key: auth(entries[key], "x") for key in order}})
        assert found.find("a.example").username == "host"
        assert found.find("a.example", "team/learner").username == "team"
        assert found.find("a.example", "team/deep").username == "deep"
        assert found.find("a.example", "teams/learner").username == "host"
        assert found.find("b.example", "team/learner").username == "other"
        assert found.find("b.example", "x/learner") is None
        assert found.find("b.example").username == "other"


def test_an_empty_entry_hides_no_other_one(tmp_path):
    """`docker logout`, and a store of credentials, leave empty ones."""
    found = files(
        tmp_path, {"auths": {"https://a.example/v2/": auth("ann", "x"), "a.example": {}, "http://a.example": 7}}
    )
    assert found.find("a.example").username == "ann"


def test_identity_tokens_and_plain_fields(tmp_path):
    found = files(
        tmp_path, {"auths": {"a.example": {"identitytoken": "t"}, "b.example": {"username": "u", "password": "p"}}}
    )
    assert found.find("a.example") == Credential(identity_token="t")
    assert found.find("b.example") == Credential(username="u", password="p")


def test_the_hub_by_its_old_name(tmp_path):
    found = files(tmp_path, {"auths": {"https://index.docker.io/v1/": auth("ann", "x")}})
    assert found.find("docker.io").username == "ann"


def test_the_first_file_that_knows_the_host_wins(tmp_path):
    found = files(tmp_path, {}, {"auths": {"a.example": auth("one", "1")}}, {"auths": {"a.example": auth("two", "2")}})
    assert found.find("a.example").username == "one"
    assert UserCredentials(files=(tmp_path / "none",)).find("a.example") is None


@pytest.mark.parametrize("document", ["{", "\xff", {"auths": {"a.example": {"auth": "!!"}}}])
def test_a_file_that_cannot_be_read_is_told_without_its_content(tmp_path, document):
    with pytest.raises(RegistryAuth) as caught:
        files(tmp_path, document).find("a.example")
    assert "!!" not in str(caught.value)


def test_where_docker_and_podman_keep_them(tmp_path):
    environ = {"HOME": "/home/x", "DOCKER_CONFIG": "/d", "XDG_RUNTIME_DIR": "/run/user/1"}
    assert [str(path) for path in UserCredentials.of_user(environ).files] == [
        "/d/config.json",
        "/run/user/1/containers/auth.json",
        "/home/x/.config/containers/auth.json",
    ]
    assert [str(path) for path in UserCredentials.of_user({"HOME": "/h", "REGISTRY_AUTH_FILE": "/f"}).files][:2] == [
        "/f",
        "/h/.docker/config.json",
    ]


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """Puts a credential helper of this shell code on PATH."""

    def make(script):
        place = tmp_path / "bin"
        place.mkdir(exist_ok=True)
        program = place / "docker-credential-test"
        program.write_text(f'#!/bin/sh\nread server\necho "$1 $server" >> {tmp_path}/asked\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")
        return tmp_path / "asked"

    return make


def test_a_helper_is_asked(tmp_path, helper):
    asked = helper("""echo '{"ServerURL":"x","Username":"ann","Secret":"s"}'""")
    for document in ({"credHelpers": {"a.example": "test"}}, {"credsStore": "test"}):
        assert files(tmp_path, document).find("a.example") == Credential(username="ann", password="s")
    assert asked.read_text() == "get a.example\n" * 2
    assert files(tmp_path, {"credHelpers": {"a.example": "test"}}).find("b.example") is None


def test_a_helper_gives_an_identity_token(tmp_path, helper):
    helper("""echo '{"Username":"<token>","Secret":"t"}'""")
    assert files(tmp_path, {"credsStore": "test"}).find("a.example") == Credential(identity_token="t")


def test_a_helper_that_knows_nothing_or_fails(tmp_path, helper):
    helper("echo credentials not found in native keychain; exit 1")
    assert files(tmp_path, {"credsStore": "test"}).find("a.example") is None
    helper("echo s3cret; exit 1")
    with pytest.raises(RegistryAuth, match="ended with 1") as caught:
        files(tmp_path, {"credsStore": "test"}).find("a.example")
    assert "s3cret" not in str(caught.value)
    helper("echo nonsense")
    with pytest.raises(RegistryAuth, match="can't be read"):
        files(tmp_path, {"credsStore": "test"}).find("a.example")


@pytest.mark.parametrize("name", ["nowhere-to-be-found", "../../bin/sh", "a b"])
def test_a_helper_that_is_not_there_or_is_no_name(tmp_path, helper, name):
    helper("exit 0")
    with pytest.raises(RegistryAuth):
        files(tmp_path, {"credsStore": name}).find("a.example")


def test_a_credential_does_not_print_its_secrets():
    assert "s3cret" not in repr(Credential(username="ann", password="s3cret", identity_token="s3cret"))


# --- challenges ---
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (['Basic realm="x"'], [("basic", {"realm": "x"})]),
        (
            ['Bearer realm="https://a/t",service="s",scope="repository:a:pull,push"'],
            [("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:a:pull,push"})],
        ),
        (
            ['Basic realm=x, BEARER Realm="y" , service=z'],
            [("basic", {"realm": "x"}), ("bearer", {"realm": "y", "service": "z"})],
        ),
        (["Negotiate", r'Basic realm="a\"b"'], [("negotiate", {}), ("basic", {"realm": 'a"b'})]),
        (['Bearer scope="a:b:c",scope="d:e:f"'], [("bearer", {"scope": "a:b:c d:e:f"})]),
        (["realm=x", "", "\"'"], []),
        (['Basic realm="open'], [("basic", {})]),
    ],
)
def test_challenges_are_read(headers, expected):
    response = httpx.Response(401, headers=[("WWW-Authenticate", header) for header in headers])
    assert [(one.scheme, one.parameters) for one in challenges(response)] == expected


def test_scopes_are_merged_by_resource():
    assert merge_scopes(["repository:b:pull", "repository:a:push,pull", "repository:b:push", ""]) == (
        "repository:a:pull,push",
        "repository:b:pull,push",
    )


# --- the flow, against a registry in this process ---
class Guarded:
    """A registry that wants a login, its token server, and everybody's requests written down."""

    def __init__(self, *, realm="https://auth.example.org/token", basic=False, needs=ANN, lifetime=300):
        self.realm, self.basic, self.needs, self.lifetime = realm, basic, needs, lifetime
        self.requests = []
        self.tokens = 0
        self.valid = set()
        self.lock = threading.Lock()
        self.answers = {}

    def __call__(self, request):
        with self.lock:
            self.requests.append(httpx.Request(request.method, request.url, headers=request.headers))
            if request.url.host in self.answers:
                return self.answers[request.url.host](request)
            if request.url.path == "/token":
                return self.token(request)
            if self.basic:
                allowed = request.headers.get("authorization") == ANN.basic
            else:
                allowed = request.headers.get("authorization", "") in self.valid
            if not allowed:
                scheme = (
                    'Basic realm="r"'
                    if self.basic
                    else f'Bearer realm="{self.realm}",service="svc",scope="repository:a:pull"'
                )
                return httpx.Response(401, headers={"WWW-Authenticate": scheme})
            return httpx.Response(200)

    def token(self, request):
        if self.needs is not None and request.headers.get("authorization") != self.needs.basic:
            return httpx.Response(401)
        self.tokens += 1
        self.valid.add(f"Bearer token{self.tokens}")
        return httpx.Response(200, json={"token": f"token{self.tokens}", "expires_in": self.lifetime})

    def connect(self, host="registry.example.org", credential=ANN, **options):
        registry = Registry.parse(host)
        credentials = FixedCredentials(by_host={registry.host: credential}) if credential else None
        transport = httpx.MockTransport(self)
        return RegistryClient(registry, credentials=credentials, transport=transport, retry=QUICK, **options)

    def hosts_that_saw_a_credential(self):
        return {request.url.host for request in self.requests if "authorization" in request.headers}


def test_basic_is_sent_after_it_was_asked_for_and_then_at_once():
    guarded = Guarded(basic=True)
    client = guarded.connect()
    client.ping()
    client.ping()
    assert ["authorization" in request.headers for request in guarded.requests] == [False, True, True]


@pytest.mark.parametrize("basic", [True, False])
def test_a_repository_is_asked_for_with_its_namespaces_credential(tmp_path, basic):
    other = auth("bob", "wrong")
    known = files(
        tmp_path, {"auths": {"registry.example.org": other, "registry.example.org/a": auth("ann", ANN.password)}}
    )
    guarded = Guarded(basic=basic)
    registry = Registry.parse("registry.example.org")
    with RegistryClient(registry, credentials=known, transport=httpx.MockTransport(guarded), retry=QUICK) as client:
        with pytest.raises(RegistryAuth):
            client.tags("elsewhere")
        assert client.has_blob("a/b", "sha256:" + "0" * 64)


def test_nobody_at_a_registry_that_wants_a_login():
    with pytest.raises(RegistryAuth) as caught:
        Guarded(basic=True).connect(credential=None).ping()
    assert "login registry.example.org" in caught.value.hint


def test_a_wrong_password_is_sent_once_for_a_request_and_never_shown():
    guarded = Guarded(basic=True)
    with pytest.raises(RegistryAuth) as caught:
        guarded.connect(credential=Credential(username="ann", password="wr0ng")).ping()
    assert len(guarded.requests) == 2
    assert "wr0ng" not in str(caught.value) + caught.value.hint


def test_a_token_is_fetched_for_what_is_wanted_and_kept():
    guarded = Guarded()
    client = guarded.connect()
    assert client.has_blob("a", "sha256:" + "0" * 64)
    assert client.has_blob("a", "sha256:" + "1" * 64)
    asked = [
        urllib.parse.parse_qsl(request.url.query.decode())
        for request in guarded.requests
        if request.url.path == "/token"
    ]
    assert asked == [[("service", "svc"), ("scope", "repository:a:pull")]]


def test_a_push_asks_for_both_rights_and_a_mount_for_both_repositories():
    guarded = Guarded()
    client, digest = guarded.connect(), "sha256:" + "0" * 64
    with contextlib.suppress(RegistryRefused):  # this registry knows no uploads
        client.push_blob("a", digest, 1, lambda: io.BytesIO(b"x"))
    with contextlib.suppress(RegistryRefused):
        client._blobs._mount("a", digest, "b")
    scopes = [request.url.params.get_list("scope") for request in guarded.requests if request.url.path == "/token"]
    assert scopes == [
        ["repository:a:pull,push"],
        ["repository:a:pull", "repository:b:pull"],
        ["repository:a:pull,push", "repository:b:pull"],
    ]


def test_one_token_request_at_a_time_for_a_scope():
    guarded = Guarded()
    client = guarded.connect()
    threads = [threading.Thread(target=client.has_blob, args=("a", f"sha256:{n:064}")) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert guarded.tokens == 1


def test_a_token_that_ends_early_is_renewed_once_and_the_request_sent_again():
    guarded = Guarded()
    client = guarded.connect()
    client.ping()
    guarded.valid.clear()
    client.ping()
    assert guarded.tokens == 2
    guarded.valid = frozenset()
    guarded.token = lambda request: httpx.Response(200, json={"token": "never good"})
    before = len(guarded.requests)
    with pytest.raises(RegistryAuth):
        client.ping()
    assert len(guarded.requests) - before == 3


def test_a_token_is_renewed_before_its_end(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    guarded = Guarded(lifetime=100)
    client = guarded.connect()
    client.ping()
    now[0] += 94
    client.ping()
    assert guarded.tokens == 1
    now[0] += 2
    client.ping()
    assert guarded.tokens == 2


def test_nobody_gets_a_token_too():
    guarded = Guarded(needs=None)
    guarded.connect(credential=None).ping()
    assert guarded.tokens == 1


def test_an_identity_token_is_posted():
    guarded = Guarded()
    forms = []

    def token(request):
        forms.append((request.method, dict(urllib.parse.parse_qsl(request.content.decode()))))
        guarded.valid.add("Bearer t")
        return httpx.Response(200, json={"access_token": "t"})

    guarded.token = token
    guarded.connect(credential=Credential(identity_token="refresh")).has_blob("a", "sha256:" + "0" * 64)
    assert forms == [
        (
            "POST",
            {
                "grant_type": "refresh_token",
                "service": "svc",
                "client_id": "flops",
                "scope": "repository:a:pull",
                "refresh_token": "refresh",
            },
        )
    ]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(401), RegistryAuth),
        (httpx.Response(403), RegistryAuth),
        (httpx.Response(200, content=b"{"), RegistryAuth),
        (httpx.Response(200, json=[]), RegistryAuth),
        (httpx.Response(200, json={"token": "a\nb"}), RegistryAuth),
        (httpx.Response(302, headers={"Location": "https://elsewhere.example.net/"}), RegistryAuth),
        (httpx.Response(503), RegistryUnreachable),
    ],
)
def test_a_token_server_that_gives_none(answer, error):
    guarded = Guarded()
    guarded.token = lambda request: answer
    with pytest.raises(error):
        guarded.connect().ping()
    assert "elsewhere.example.net" not in {request.url.host for request in guarded.requests}


@pytest.mark.parametrize("failure", [httpx.ConnectError("connection refused"), httpx.ReadTimeout("slow")])
def test_a_token_server_that_is_down_is_named(failure):
    def down(request):
        raise failure

    guarded = Guarded()
    guarded.token = down
    with pytest.raises(RegistryUnreachable) as caught:
        guarded.connect().ping()
    assert "auth.example.org, where the registry registry.example.org sends its clients for a token," in str(
        caught.value
    )
    assert str(failure) in str(caught.value)
    assert caught.value.hint == "see that it runs"


def test_a_token_server_that_fails_once_is_asked_again():
    guarded = Guarded()
    right, answers = guarded.token, [httpx.Response(503)]
    guarded.token = lambda request: answers.pop() if answers else right(request)
    guarded.connect().ping()


# --- where credentials go ---
@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("registry.example.org", "https://registry.example.org/token"),
        ("registry.example.org:5000", "https://registry.example.org/token"),
        ("registry.example.org", "https://auth.example.org/token"),
        ("registry.example.org", "https://example.org/token"),
        ("127.0.0.1:5000", "http://127.0.0.1:5001/token"),
        ("127.0.0.1:5000", "http://localhost:5001/token"),
        ("http://registry.example.org", "http://registry.example.org/token"),
        ("http://registry.example.org", "https://auth.example.org/token"),
        ("docker.io", "https://auth.docker.io/token"),
    ],
)
def test_realms_that_are_asked(registry, realm):
    guarded = Guarded(realm=realm)
    guarded.connect(registry).ping()
    assert guarded.tokens == 1


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("registry.example.org", "http://registry.example.org/token"),
        ("registry.example.org", "http://auth.example.org/token"),
        ("registry.example.org", "https://elsewhere.example.net/token"),
        ("registry.example.org", "https://notexample.org/token"),
        ("registry.example.org", "https://inside.example.org/token"),
        ("registry.example.org", "https://127.0.0.1/token"),
        ("registry.example.org", "https://169.254.169.254/token"),
        ("registry.example.org", "https://localhost/token"),
        ("registry.example.org", "file:///etc/passwd"),
        ("registry.example.org", ""),
        ("registry.example.org", "https://[bad/token"),
        ("registry.lan", "https://auth.lan/token"),
        ("http://registry.example.org", "http://auth.example.org/token"),
        ("127.0.0.1:5000", "http://10.0.0.1/token"),
        ("10.0.0.5:5000", "https://10.0.0.6/token"),
    ],
)
def test_realms_that_are_refused_and_never_contacted(registry, realm):
    guarded = Guarded(realm=realm)
    with pytest.raises(AuthRealm):
        guarded.connect(registry).ping()
    assert len(guarded.requests) == 1
    assert guarded.hosts_that_saw_a_credential() == set()


def test_a_realm_that_settings_allow():
    guarded = Guarded(realm="https://auth.lan/token")
    guarded.connect("registry.lan", realms=["auth.lan"]).ping()
    assert guarded.tokens == 1


def test_a_foreign_location_gets_the_blob_and_no_credential():
    guarded = Guarded(basic=True)
    taken = []

    def storage(request):
        taken.append(request)
        return httpx.Response(201)

    def registry(request):
        if request.headers.get("authorization") != ANN.basic:
            return httpx.Response(401, headers={"WWW-Authenticate": "Basic realm=r"})
        if request.method == "POST":
            return httpx.Response(202, headers={"Location": "https://elsewhere.example.net/put?sig=1"})
        return httpx.Response(404)

    guarded.answers = {"registry.example.org": registry, "elsewhere.example.net": storage}
    digest = "sha256:" + "0" * 64
    guarded.connect().push_blob("a", digest, 3, lambda: io.BytesIO(b"abc"))
    assert [(str(one.url), one.content) for one in taken] == [
        (f"https://elsewhere.example.net/put?sig=1&digest=sha256%3A{'0' * 64}", b"abc")
    ]
    assert guarded.hosts_that_saw_a_credential() == {"registry.example.org"}


def test_a_redirect_of_a_blob_is_followed_without_a_credential_even_when_asked_for_one():
    guarded = Guarded(basic=True)
    guarded.answers = {
        "registry.example.org": lambda request: (
            httpx.Response(307, headers={"Location": "https://elsewhere.example.net/blob"})
            if request.headers.get("authorization") == ANN.basic
            else httpx.Response(401, headers={"WWW-Authenticate": "Basic realm=r"})
        ),
        "elsewhere.example.net": lambda request: httpx.Response(401, headers={"WWW-Authenticate": "Basic realm=r"}),
    }
    client = guarded.connect()
    with pytest.raises(RegistryAuth), client.get_blob("a", "sha256:" + "0" * 64) as pieces:
        list(pieces)
    assert guarded.hosts_that_saw_a_credential() == {"registry.example.org"}


@pytest.mark.parametrize(
    "location",
    [
        "http://elsewhere.example.net/x",
        "https://10.0.0.1/x",
        "https://[::1]/x",
        "https://[::ffff:10.0.0.1]/x",
        "https://inside.example.org/x",
        "https://169.254.169.254/latest",
        "file:///etc/passwd",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_locations_that_are_not_followed(location, method):
    guarded = Guarded()
    status = 307 if method == "GET" else 202
    guarded.answers = {
        "registry.example.org": lambda request: (
            httpx.Response(404) if request.method == "HEAD" else httpx.Response(status, headers={"Location": location})
        )
    }
    client = guarded.connect()
    calls = {
        "GET": lambda: client.get_manifest("a", "v1"),
        "POST": lambda: client.push_blob("a", "sha256:" + "0" * 64, 0, io.BytesIO),
    }
    with pytest.raises(RegistryRefused):
        calls[method]()
    assert {request.url.host for request in guarded.requests} == {"registry.example.org"}


def test_an_own_location_in_http_is_spoken_to_by_https():
    guarded = Guarded()
    guarded.answers = {
        "registry.example.org": lambda request: {
            "HEAD": httpx.Response(404),
            "POST": httpx.Response(202, headers={"Location": "http://registry.example.org/v2/up"}),
            "PUT": httpx.Response(201),
        }[request.method]
    }
    guarded.connect().push_blob("a", "sha256:" + "0" * 64, 1, lambda: io.BytesIO(b"x"))
    assert guarded.requests[-1].url.scheme == "https"
    assert guarded.requests[-1].method == "PUT"


def test_redirects_end():
    guarded = Guarded()
    guarded.answers = {"registry.example.org": lambda request: httpx.Response(302, headers={"Location": "/again"})}
    with pytest.raises(RegistryRefused, match="without end"):
        guarded.connect().get_manifest("a", "v1")
    assert len(guarded.requests) == 5


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("x.localhost", True),
        ("::1", True),
        ("::ffff:10.0.0.1", True),
        ("0.0.0.0", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("fd00::1", True),
        ("fe80::1%eth0", True),
        ("224.0.0.1", True),
        ("64:ff9b::a00:1", True),
        ("2002:a00:1::1", True),
        ("fec0::1", True),
        ("8.8.8.8", False),
        ("registry.example.org", False),
        ("inside.example.org", True),
        ("not.to.be.found", False),
    ],
)
def test_private_addresses(host, private):
    assert is_private(host) is private


def test_a_reference_to_the_hub_is_reached_at_its_address():
    assert Reference.parse("docker.io/debian:12").registry.url == "https://registry-1.docker.io"
