"""Who may do what at the embedded registry: the token, the token flow, names that no page may rebind."""

import base64
import io
import os
import time

import httpx
import pytest

from flops import throttle
from flops.errors import RegistryAuth
from flops.oci.blobs import sha256
from flops.oci.client import RegistryClient
from flops.oci.credentials import Credential, FixedCredentials
from flops.registry import tokens
from flops.registry.app import EmbeddedRegistry

TOKEN = "correct horse"


@pytest.fixture(scope="module", params=[False, True], ids=["open", "private"])
def private(request):
    return request.param


@pytest.fixture(scope="module")
def server(private, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)  # no test here cuts the power
        patch.setattr(throttle, "FREE", 10_000)  # they all come from one address
        root = tmp_path_factory.mktemp("registry")
        with EmbeddedRegistry(root, token=TOKEN, private=private, hosts=["Registry.Example"]) as running:
            yield running


@pytest.fixture
def web(server):
    with httpx.Client(base_url=server.registry.url, trust_env=False) as client:
        yield client


def basic(password, user="anybody"):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def writes(web, headers):
    """The statuses of all that changes something, or belongs to it."""
    digest = "sha256:" + "0" * 64
    asked = [
        ("POST", "/v2/a/b/blobs/uploads/"),
        ("PATCH", "/v2/a/b/blobs/uploads/x"),
        ("PUT", "/v2/a/b/blobs/uploads/x"),
        ("GET", "/v2/a/b/blobs/uploads/x"),
        ("DELETE", "/v2/a/b/blobs/uploads/x"),
        ("DELETE", f"/v2/a/b/blobs/{digest}"),
        ("PUT", "/v2/a/b/manifests/t"),
        ("DELETE", "/v2/a/b/manifests/t"),
    ]
    return {web.request(method, path, headers=headers).status_code for method, path in asked}


def test_a_push_needs_the_token(web):
    for headers in ({}, basic("wrong"), bearer("wrong"), {"Authorization": "Basic !"}, {"Authorization": "Digest x"}):
        assert writes(web, headers) == {401}
    for headers in (basic(TOKEN), bearer(TOKEN), basic(TOKEN, user="")):
        assert 401 not in writes(web, headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://{host}", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a_page_of_another_origin_changes_nothing(tmp_path, headers):
    """Where no token is set, a page that its user merely looks at could push: a form's POST asks nobody first."""
    with EmbeddedRegistry(tmp_path) as server, httpx.Client(base_url=server.registry.url, trust_env=False) as client:
        content = b"pushed by a page"
        headers = {name: value.format(host=server.registry.host) for name, value in headers.items()}
        asked = {"content": content, "headers": {**headers, "Content-Type": "text/plain"}}
        path = f"/v2/a/b/blobs/uploads/?digest={sha256(content)}"
        answer = client.post(path, **asked)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (403, "DENIED")
        assert client.head(f"/v2/a/b/blobs/{sha256(content)}").status_code == 404
        assert writes(client, headers) - {404, 400} == {403}
        assert client.get("/v2/", headers=headers).status_code == 200, "reading changes nothing"
        for own in ({}, {"Origin": server.registry.url}, {"Sec-Fetch-Site": "none"}):
            assert client.post(path, content=content, headers=own).status_code == 201


def test_a_pull_needs_it_where_the_registry_is_private(private, web):
    for path in ("/v2/a/b/manifests/t", "/v2/a/b/tags/list", "/v2/_catalog", "/v2/a/b/blobs/sha256:" + "0" * 64):
        assert (web.get(path).status_code == 401) is private
        assert web.get(path, headers=basic(TOKEN)).status_code != 401


def test_the_root_tells_how_to_log_in(server, web):
    answer = web.get("/v2/")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == f'Bearer realm="{server.registry.url}/token",service="flops"'
    asked = web.post("/v2/a/b/blobs/uploads/")
    assert asked.headers["www-authenticate"].endswith(',scope="repository:a/b:pull,push"')
    forwarded = web.get("/v2/", headers={"X-Forwarded-Proto": "https"})
    assert f'realm="https://{server.registry.host}/token"' in forwarded.headers["www-authenticate"]


def test_the_token_flow(private, web):
    given = web.get("/token", params={"service": "flops", "scope": "repository:a/b:pull,push"}, headers=basic(TOKEN))
    assert given.headers["cache-control"] == "no-store"
    assert given.json()["token"] == given.json()["access_token"]
    assert TOKEN not in given.json()["token"]
    assert web.get("/v2/", headers=bearer(given.json()["token"])).status_code == 200
    assert 401 not in writes(web, bearer(given.json()["token"]))
    for headers in (basic("wrong"), bearer("wrong")):
        assert web.get("/token", headers=headers).status_code == 401
    anybody = web.get("/token")
    assert (anybody.status_code == 401) is private
    if not private:
        assert web.get("/v2/", headers=bearer(anybody.json()["token"])).status_code == 200
        assert writes(web, bearer(anybody.json()["token"])) == {401}


def test_the_token_flow_by_post(web):
    for field in ("password", "refresh_token"):
        given = web.post("/token", data={"grant_type": field, "username": "x", field: TOKEN})
        assert 401 not in writes(web, bearer(given.json()["access_token"]))
        assert web.post("/token", data={field: "wrong"}).status_code == 401
    assert web.post("/token", content=b"x" * 100_000).status_code == 413
    assert web.put("/token").status_code == 405


def test_a_short_lived_token_ends_and_can_not_be_made_up(web, monkeypatch):
    token = web.get("/token", headers=basic(TOKEN)).json()["token"]
    granted, ends, signature = token.split(".")
    forged = [
        f"push.{int(ends) + 1}.{signature}",
        f"{granted}.{ends}.{'0' * 64}",
        f"pull.{ends}.{signature}",
        "push..",
        token[:-1],
    ]
    for text in [*forged, token + "0", "push.99999999999999.x", "."]:
        assert web.get("/v2/", headers=bearer(text)).status_code == 401
    monkeypatch.setattr(time, "time", lambda: int(ends) + 1)
    assert web.get("/v2/", headers=bearer(token)).status_code == 401


def test_a_token_of_another_registry_is_none_here(web):
    other = tokens.TokenAccess(None, tokens.Rules(token="another"), None)
    assert web.get("/v2/", headers=bearer(other._sign("push", 9_999_999_999))).status_code == 401


def test_our_own_client_logs_in_and_renews_its_token(server, monkeypatch):
    known = FixedCredentials(by_host={server.registry.host: Credential(username="x", password=TOKEN)})
    with RegistryClient(server.registry, credentials=known) as client:
        client.check_push(["a/b"])
        monkeypatch.setattr(tokens, "_LIFETIME", -1)
    for credentials in (
        None,
        FixedCredentials(by_host={server.registry.host: Credential(username="x", password="no")}),
    ):
        with RegistryClient(server.registry, credentials=credentials) as client, pytest.raises(RegistryAuth):
            client.check_push(["a/b"])


@pytest.mark.parametrize(
    "host", ["127.0.0.1:5", "localhost", "x.localhost:80", "[::1]:5", "10.1.2.3", "registry.example:5"]
)
def test_names_that_are_known(web, host):
    assert web.get("/v2/", headers={"Host": host}).status_code == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "registry.example.evil.example", "", "127.0.0.1.evil.example", "[", "a b"]
)
def test_names_that_a_page_may_have_rebound(web, host):
    answer = web.get("/v2/", headers={"Host": host, **basic(TOKEN)})
    assert answer.status_code in {400, 421}
    assert "www-authenticate" not in answer.headers


def test_a_registry_without_a_token_checks_names_too(tmp_path):
    with EmbeddedRegistry(tmp_path) as server, httpx.Client(base_url=server.registry.url) as web:
        assert web.get("/v2/", headers={"Host": "evil.example"}).status_code == 421
        assert web.get("/token").status_code == 404
        with RegistryClient(server.registry) as client:
            client.push_blob("a", sha256(b""), 0, io.BytesIO)
