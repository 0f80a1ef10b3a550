"""The embedded registry, by the clauses of the distribution specification (1.1)."""

import hashlib
import http.client
import json
import os
import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from flops.errors import RegistryError
from flops.oci.blobs import disk_full
from flops.registry import blob_api, storage
from flops.registry.app import EmbeddedRegistry
from flops.registry.storage import RegistryStore

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def server(root):
    with EmbeddedRegistry(root) as running:
        yield running


@pytest.fixture(scope="module")
def web(server):
    with httpx.Client(base_url=server.registry.url, trust_env=False) as client:
        yield client


@pytest.fixture
def name(request):
    """A repository of its own for each test."""
    return "t/" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]


def push_blob(web, name, data):
    begun = web.post(f"/v2/{name}/blobs/uploads/")
    assert begun.status_code == 202
    done = web.put(begun.headers["location"], params={"digest": digest_of(data)}, content=data)
    assert done.status_code == 201, done.text
    return digest_of(data)


def manifest_of(*blobs, **more):
    entry = [{"mediaType": "application/x", "digest": digest_of(blob), "size": len(blob)} for blob in blobs]
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": entry[0], "layers": entry[1:], **more}
    return json.dumps(document).encode()


def put_manifest(web, name, reference, document, media_type=MANIFEST):
    return web.put(f"/v2/{name}/manifests/{reference}", content=document, headers={"Content-Type": media_type})


def push_image(web, name, tag, salt=b""):
    config, layer = b"{}" + salt, b"layer" + salt
    push_blob(web, name, config)
    push_blob(web, name, layer)
    document = manifest_of(config, layer)
    assert put_manifest(web, name, tag, document).status_code == 201
    return document


def code(response):
    return response.json()["errors"][0]["code"]


def test_every_answer_tells_the_api_version(web):
    for path in ("/v2/", "/v2", "/v2/no/such/manifests/x", "/elsewhere"):
        assert web.get(path).headers["docker-distribution-api-version"] == "registry/2.0"
    assert web.get("/v2/").status_code == 200


def test_an_answer_waits_for_no_delayed_acknowledgement(web):
    seconds = sorted(web.get("/v2/").elapsed.total_seconds() for _ in range(15))
    assert seconds[7] < 0.03  # 0.04 and more without TCP_NODELAY


# --- pushing blobs ---
def test_post_then_put(web, name):
    data = os.urandom(3_000_000)
    begun = web.post(f"/v2/{name}/blobs/uploads/")
    assert begun.headers["location"].startswith(f"/v2/{name}/blobs/uploads/")
    done = web.put(begun.headers["location"], params={"digest": digest_of(data)}, content=data)
    assert done.status_code == 201
    assert done.headers["location"] == f"/v2/{name}/blobs/{digest_of(data)}"
    assert done.headers["docker-content-digest"] == digest_of(data)
    assert web.get(done.headers["location"]).content == data


def test_single_post(web, name):
    done = web.post(f"/v2/{name}/blobs/uploads/", params={"digest": digest_of(b"one")}, content=b"one")
    assert done.status_code == 201
    assert web.get(done.headers["location"]).content == b"one"


def test_empty_blob(web, name):
    assert web.get(f"/v2/{name}/blobs/{push_blob(web, name, b'')}").content == b""


def test_chunks_in_order(web, name):
    at = web.post(f"/v2/{name}/blobs/uploads/").headers["location"]
    for number, chunk in enumerate((b"aaa", b"bbb")):
        start = 3 * number
        done = web.patch(at, content=chunk, headers={"Content-Range": f"{start}-{start + 2}"})
        assert done.status_code == 202
        assert done.headers["range"] == f"0-{start + 2}"
        at = done.headers["location"]
    status = web.get(at)
    assert (status.status_code, status.headers["range"]) == (204, "0-5")
    done = web.put(at, params={"digest": digest_of(b"aaabbbc")}, content=b"c", headers={"Content-Range": "6-6"})
    assert done.status_code == 201
    assert web.get(done.headers["location"]).content == b"aaabbbc"


@pytest.mark.parametrize("header", ["3-5", "1-3", "0-1", "0-9", "2-0", "x", "0-"])
def test_a_chunk_out_of_order_is_refused_and_changes_nothing(web, name, header):
    at = web.post(f"/v2/{name}/blobs/uploads/").headers["location"]
    refused = web.patch(at, content=b"abc", headers={"Content-Range": header})
    assert (refused.status_code, code(refused)) == (416, "BLOB_UPLOAD_INVALID")
    assert refused.headers["range"] == "0-0"
    done = web.put(at, params={"digest": digest_of(b"abc")}, content=b"abc")
    assert done.status_code == 201


def test_stream_without_a_range(web, name):
    at = web.post(f"/v2/{name}/blobs/uploads/").headers["location"]
    assert web.patch(at, content=iter([b"a" * 100_000] * 30)).headers["range"] == "0-2999999"
    done = web.put(at, params={"digest": digest_of(b"a" * 3_000_000)})
    assert done.status_code == 201


def test_wrong_digest_leaves_nothing(web, name, root):
    at = web.post(f"/v2/{name}/blobs/uploads/").headers["location"]
    refused = web.put(at, params={"digest": digest_of(b"other")}, content=b"these")
    assert (refused.status_code, code(refused)) == (400, "DIGEST_INVALID")
    assert web.head(f"/v2/{name}/blobs/{digest_of(b'other')}").status_code == 404
    assert web.head(f"/v2/{name}/blobs/{digest_of(b'these')}").status_code == 404
    assert web.get(at).status_code == 404
    assert not list((root / "uploads").rglob(at.rpartition("/")[2]))


@pytest.mark.parametrize("digest", ["", "sha256:abc", "md5:" + "a" * 32, "sha256:" + "A" * 64, "../../x"])
def test_a_bad_digest_is_refused(web, name, digest):
    at = web.post(f"/v2/{name}/blobs/uploads/").headers["location"]
    refused = web.put(at, params={"digest": digest}, content=b"x")
    assert (refused.status_code, code(refused)) == (400, "DIGEST_INVALID")


def test_cancelled_and_unknown_uploads(web, name):
    at = web.post(f"/v2/{name}/blobs/uploads/").headers["location"]
    assert web.delete(at).status_code == 204
    for method in ("PATCH", "PUT", "GET", "DELETE"):
        answer = web.request(method, at, params={"digest": digest_of(b"")})
        assert (answer.status_code, code(answer)) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_an_upload_belongs_to_its_repository(web, name):
    at = web.post(f"/v2/{name}/blobs/uploads/").headers["location"]
    assert web.get(at.replace(name, name + "/other")).status_code == 404


def test_a_cut_upload_can_be_continued(web, name, server):
    at = web.post(f"/v2/{name}/blobs/uploads/").headers["location"]
    connection = http.client.HTTPConnection(server.host, server.port)
    connection.putrequest("PATCH", at)
    connection.putheader("Content-Length", "5000000")
    connection.endheaders()
    connection.send(b"a" * 2_500_000)
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    for _ in range(1500):  # the request may reach the registry after our question
        received = int(web.get(at).headers["range"].partition("-")[2]) + 1
        if received > 1:
            break
        time.sleep(0.02)
    assert 1 < received <= 2_500_000
    assert web.head(f"/v2/{name}/blobs/{digest_of(b'a' * received)}").status_code == 404
    rest = b"a" * (5_000_000 - received)
    done = web.put(
        at,
        params={"digest": digest_of(b"a" * 5_000_000)},
        content=rest,
        headers={"Content-Range": f"{received}-4999999"},
    )
    assert done.status_code == 201


def test_concurrent_uploads_of_one_blob(web, name):
    data = os.urandom(1_000_000)
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: push_blob(web, name, data), range(16)))) == 1
    assert web.get(f"/v2/{name}/blobs/{digest_of(data)}").content == data


# --- mounting ---
def test_mount_from_another_repository(web, name):
    digest = push_blob(web, name, b"shared")
    done = web.post(f"/v2/{name}/other/blobs/uploads/", params={"mount": digest, "from": name})
    assert (done.status_code, done.headers["location"]) == (201, f"/v2/{name}/other/blobs/{digest}")
    assert web.get(done.headers["location"]).content == b"shared"


@pytest.mark.parametrize("source", ["no/such", "", "../x", "UPPER"])
def test_a_mount_that_is_not_possible_begins_an_upload(web, name, source):
    done = web.post(f"/v2/{name}/blobs/uploads/", params={"mount": digest_of(b"m"), "from": source})
    assert done.status_code == 202
    assert web.put(done.headers["location"], params={"digest": digest_of(b"m")}, content=b"m").status_code == 201


def test_a_mount_takes_nothing_from_a_repository_that_does_not_hold_it(web, name):
    """Its bytes lie on the disk for a third one, which need not be readable to who asks."""
    digest = push_blob(web, name, b"of a third one")
    push_blob(web, f"{name}/source", b"something else")
    answer = web.post(f"/v2/{name}/other/blobs/uploads/", params={"mount": digest, "from": f"{name}/source"})
    assert answer.status_code == 202
    assert web.head(f"/v2/{name}/other/blobs/{digest}").status_code == 404


def test_a_blob_is_in_the_repositories_that_got_it_only(web, name):
    digest = push_blob(web, name, b"mine alone")
    answer = web.get(f"/v2/{name}/other/blobs/{digest}")
    assert (answer.status_code, code(answer)) == (404, "BLOB_UNKNOWN")


# --- pulling blobs ---
def test_head_blob(web, name):
    digest = push_blob(web, name, b"0123456789")
    answer = web.head(f"/v2/{name}/blobs/{digest}")
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "10", b"")
    assert answer.headers["docker-content-digest"] == digest


@pytest.mark.parametrize(
    ("range_", "status", "content"),
    [
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-2", 206, b"89"),
        ("Bytes=8-20", 206, b"89"),
        ("bytes=20-30", 416, None),
        ("bytes=0-1, 3-4", 206, None),
        *(
            (text, 200, b"0123456789")
            for text in (
                "lines=1-2",
                "bytes=x-2",
                "bytes=4-2",
                "bytes=",
                "bytes=1",
                "0-4",
                "bytes=1-2,",
                "bytes=1-2-3",
                "bytes=" + "9" * 5000 + "-",
            )
        ),
    ],
)
def test_ranges(web, name, range_, status, content):
    digest = push_blob(web, name, b"0123456789")
    answer = web.get(f"/v2/{name}/blobs/{digest}", headers={"Range": range_})
    assert answer.status_code == status
    assert content is None or answer.content == content
    head = web.head(f"/v2/{name}/blobs/{digest}", headers={"Range": range_})
    assert (head.status_code, head.headers["content-length"]) == (200, "10")  # ranges are GET's alone


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_the_client_holds_is_not_sent_again(web, name, method):
    document = push_image(web, name, "v1")
    for path, digest in (
        ("manifests/v1", digest_of(document)),
        (f"manifests/{digest_of(document)}", digest_of(document)),
        (f"blobs/{digest_of(b'layer')}", digest_of(b"layer")),
    ):
        etag = web.get(f"/v2/{name}/{path}").headers["etag"]
        for held in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            answer = web.request(method, f"/v2/{name}/{path}", headers={"If-None-Match": held})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
            assert answer.headers["docker-content-digest"] == digest
        for held in ("", '"other"', f'"{digest_of(b"other")}"'):
            assert web.request(method, f"/v2/{name}/{path}", headers={"If-None-Match": held}).status_code == 200
    assert web.get(f"/v2/{name}/manifests/v2", headers={"If-None-Match": "*"}).status_code == 404


# --- manifests ---
def test_manifest_by_tag_and_digest(web, name):
    document = push_image(web, name, "v1")
    for reference in ("v1", digest_of(document)):
        answer = web.get(f"/v2/{name}/manifests/{reference}")
        assert (answer.status_code, answer.content) == (200, document)
        assert answer.headers["content-type"] == MANIFEST
        assert answer.headers["docker-content-digest"] == digest_of(document)
        head = web.head(f"/v2/{name}/manifests/{reference}")
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(document)))


def test_a_manifest_needs_its_blobs(web, name):
    push_blob(web, name, b"{}")
    refused = put_manifest(web, name, "v1", manifest_of(b"{}", b"absent"))
    assert (refused.status_code, code(refused)) == (400, "MANIFEST_BLOB_UNKNOWN")
    assert refused.json()["errors"][0]["detail"] == [{"digest": digest_of(b"absent")}]
    assert web.get(f"/v2/{name}/manifests/v1").status_code == 404


def test_an_index_needs_its_manifests(web, name):
    document = push_image(web, name, "v1")
    entry = {"mediaType": MANIFEST, "digest": digest_of(document), "size": len(document)}
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
    assert put_manifest(web, name, "all", index, INDEX).status_code == 201
    refused = put_manifest(web, name + "/other", "all", index, INDEX)
    assert (refused.status_code, code(refused)) == (400, "MANIFEST_BLOB_UNKNOWN")


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        (b"", MANIFEST),
        (b"[]", MANIFEST),
        (b'{"schemaVersion": 1}', MANIFEST),
        (b"[" * 100_000, MANIFEST),
        (b'{"schemaVersion": 2, "mediaType": "%s"}' % INDEX.encode(), MANIFEST),
        (b'{"schemaVersion": 2}', ""),
        (b'{"schemaVersion": 2, "layers": 7}', MANIFEST),
        (b'{"schemaVersion": 2, "layers": [], "config": {"digest": "../../x"}}', MANIFEST),
        (b'{"schemaVersion": 2, "manifests": [3]}', INDEX),
        (b"\xff\xfe", MANIFEST),
        (b'{"schemaVersion": 2, "a": NaN}', "application/x"),
    ],
)
def test_a_bad_manifest_is_refused(web, name, document, media_type):
    refused = put_manifest(web, name, "v1", document, media_type)
    assert (refused.status_code, code(refused)) == (400, "MANIFEST_INVALID")


def test_a_manifest_has_a_size_limit(web, name):
    limit = 4 * 1024 * 1024
    push_blob(web, name, b"{}")
    whole = manifest_of(b"{}", annotations={"x": ""})
    fits = manifest_of(b"{}", annotations={"x": "x" * (limit - len(whole))})
    assert put_manifest(web, name, "v1", fits).status_code == 201
    refused = put_manifest(web, name, "v2", fits + b" ")
    assert (refused.status_code, code(refused)) == (413, "SIZE_INVALID")


def test_a_manifest_under_another_digest_is_refused(web, name):
    document = push_image(web, name, "v1")
    refused = put_manifest(web, name, digest_of(b"other"), document)
    assert (refused.status_code, code(refused)) == (400, "DIGEST_INVALID")


def test_a_tag_moves(web, name):
    push_image(web, name, "v1")
    second = push_image(web, name, "v1", b"2")
    assert web.get(f"/v2/{name}/manifests/v1").content == second


@pytest.mark.parametrize("reference", [".x", "t" * 129, "sha256:x"])
def test_a_bad_reference_names_no_manifest_and_none_gets_it(web, name, reference):
    document = push_image(web, name, "v1")
    assert web.get(f"/v2/{name}/manifests/{reference}").status_code == 404
    assert web.head(f"/v2/{name}/manifests/{reference}").status_code == 404
    assert put_manifest(web, name, reference, document).status_code == 400
    assert web.delete(f"/v2/{name}/manifests/{reference}").status_code == 400


@pytest.mark.parametrize("bad", ["UPPER", "a/../b", "a//b", "_x", "a" * 256, "%2e%2e/%2e%2e/etc", "a/_blobs"])
def test_a_bad_name_is_refused(server, bad):
    connection = http.client.HTTPConnection(server.host, server.port)
    connection.request("POST", f"/v2/{bad}/blobs/uploads/", headers={"Content-Length": "0"})
    answer = connection.getresponse()
    assert answer.status == 400
    assert json.loads(answer.read())["errors"][0]["code"] == "NAME_INVALID"
    connection.close()


# --- content discovery ---
def test_tags_by_pages(web, name):
    push_image(web, name, "v1")
    document = web.get(f"/v2/{name}/manifests/v1").content
    for tag in ("b", "A", "c"):
        assert put_manifest(web, name, tag, document).status_code == 201
    first = web.get(f"/v2/{name}/tags/list", params={"n": 3})
    assert first.json() == {"name": name, "tags": ["A", "b", "c"]}
    second = web.get(first.links["next"]["url"])
    assert second.json()["tags"] == ["v1"]
    assert "link" not in second.headers
    assert web.get(f"/v2/{name}/tags/list").json()["tags"] == ["A", "b", "c", "v1"]
    assert web.get(f"/v2/{name}/tags/list", params={"n": 0}).json()["tags"] == []
    assert web.get(f"/v2/{name}/tags/list", params={"last": "c"}).json()["tags"] == ["v1"]
    assert web.get(f"/v2/{name}/tags/list", params={"n": "-1"}).status_code == 400


def test_tags_of_nothing(web, name):
    answer = web.get(f"/v2/{name}/tags/list")
    assert (answer.status_code, code(answer)) == (404, "NAME_UNKNOWN")


def test_catalog(web, name):
    push_image(web, name, "v1")
    push_image(web, name + "/sub", "v1")
    names, url = [], "/v2/_catalog?n=2"
    while url:
        answer = web.get(url)
        names += answer.json()["repositories"]
        url = answer.links.get("next", {}).get("url")
    assert {name, name + "/sub"} <= set(names)
    assert names == sorted(set(names))


def test_referrers(web, name):
    subject = push_image(web, name, "v1")
    about = {"mediaType": MANIFEST, "digest": digest_of(subject), "size": len(subject)}
    other = manifest_of(b"{}", subject=about, artifactType="text/sbom", annotations={"a": "b"})
    pushed = put_manifest(web, name, digest_of(other), other)
    assert pushed.headers["oci-subject"] == digest_of(subject)
    found = web.get(f"/v2/{name}/referrers/{digest_of(subject)}")
    assert found.headers["content-type"] == INDEX
    assert found.json()["manifests"] == [
        {
            "mediaType": MANIFEST,
            "digest": digest_of(other),
            "size": len(other),
            "artifactType": "text/sbom",
            "annotations": {"a": "b"},
        }
    ]
    filtered = web.get(f"/v2/{name}/referrers/{digest_of(subject)}", params={"artifactType": "text/none"})
    assert (filtered.json()["manifests"], filtered.headers["oci-filters-applied"]) == ([], "artifactType")
    assert web.get(f"/v2/{name}/referrers/{digest_of(other)}").json()["manifests"] == []


def test_a_referrer_of_an_unknown_type_does_not_spoil_the_list(web, name):
    """Its fields are nobody's to judge; what is listed has the types of the image specification all the same."""
    subject = push_image(web, name, "v1")
    about = {"mediaType": MANIFEST, "digest": digest_of(subject), "size": len(subject)}
    odd = {"schemaVersion": 2, "subject": about, "config": [1], "artifactType": 7, "annotations": {"a": 5}}
    half = {"schemaVersion": 2, "subject": about, "config": "x", "annotations": {"a": "\ud800"}}
    for document in (odd, half, {**odd, "config": None, "annotations": [2]}):
        body = json.dumps(document).encode()
        assert put_manifest(web, name, digest_of(body), body, "application/x").status_code == 201
    found = web.get(f"/v2/{name}/referrers/{digest_of(subject)}")
    assert found.status_code == 200
    assert len(found.json()["manifests"]) == 3
    for entry in found.json()["manifests"]:
        assert isinstance(entry.get("artifactType", ""), str)
        assert all(isinstance(value, str) for value in dict(entry.get("annotations", {})).values())


# --- content management ---
def test_delete_tag_manifest_and_blob(web, name):
    document = push_image(web, name, "v1")
    assert put_manifest(web, name, "v2", document).status_code == 201
    assert web.delete(f"/v2/{name}/manifests/v1").status_code == 202
    assert web.get(f"/v2/{name}/manifests/v1").status_code == 404
    assert web.get(f"/v2/{name}/manifests/v2").status_code == 200
    assert web.delete(f"/v2/{name}/manifests/{digest_of(document)}").status_code == 202
    assert web.get(f"/v2/{name}/manifests/v2").status_code == 404
    assert web.get(f"/v2/{name}/tags/list").json()["tags"] == []
    assert web.delete(f"/v2/{name}/blobs/{digest_of(b'layer')}").status_code == 202
    for path in ("manifests/v1", f"manifests/{digest_of(document)}", f"blobs/{digest_of(b'layer')}"):
        assert web.delete(f"/v2/{name}/{path}").status_code == 404


# --- the rest ---
def test_unsupported_methods_and_paths(web, name):
    assert (web.put("/v2/").status_code, code(web.put("/v2/"))) == (405, "UNSUPPORTED")
    assert web.get("/v2/nothing/here").status_code == 404
    for path, allowed in (
        ("manifests/v1", "DELETE, GET, HEAD, PUT"),
        ("blobs/uploads/", "POST"),
        ("blobs/uploads/x", "DELETE, GET, HEAD, PATCH, PUT"),
        ("tags/list", "GET, HEAD"),
    ):
        answer = web.options(f"/v2/{name}/{path}")
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_read_only(root, web, name):
    document = push_image(web, name, "v1")
    with EmbeddedRegistry(root, read_only=True) as other, httpx.Client(base_url=other.registry.url) as client:
        assert client.get(f"/v2/{name}/manifests/v1").content == document
        for method, path in (("POST", "blobs/uploads/"), ("PUT", "manifests/v1"), ("DELETE", "manifests/v1")):
            answer = client.request(method, f"/v2/{name}/{path}")
            assert (answer.status_code, code(answer)) == (405, "UNSUPPORTED")
            assert answer.headers["allow"] == ("" if "uploads" in path else "GET, HEAD")


def test_all_is_there_after_a_restart_and_unfinished_uploads_are_not(tmp_path):
    with EmbeddedRegistry(tmp_path) as first, httpx.Client(base_url=first.registry.url) as web:
        document = push_image(web, "a/b", "v1")
        at = web.post("/v2/a/b/blobs/uploads/").headers["location"]
        web.patch(at, content=b"half")
    with EmbeddedRegistry(tmp_path) as second, httpx.Client(base_url=second.registry.url) as web:
        assert web.get("/v2/a/b/manifests/v1").content == document
        assert web.get(f"/v2/a/b/blobs/{digest_of(b'layer')}").content == b"layer"
        assert web.get(at).status_code == 404
    assert list((tmp_path / "uploads").iterdir()) == []


def test_two_runs_over_one_directory_leave_each_other_alone(tmp_path):
    with EmbeddedRegistry(tmp_path) as first, httpx.Client(base_url=first.registry.url) as web:
        at = web.post("/v2/a/b/blobs/uploads/").headers["location"]
        web.patch(at, content=b"half")
        with EmbeddedRegistry(tmp_path) as second, httpx.Client(base_url=second.registry.url) as other:
            push_image(other, "a/b", "v1")
        assert web.get("/v2/a/b/manifests/v1").status_code == 200
        assert web.put(at, params={"digest": digest_of(b"half and half")}, content=b" and half").status_code == 201


def test_uploads_of_a_run_that_was_killed_are_removed(tmp_path):
    left = tmp_path / "uploads" / "1-abc"
    left.mkdir(parents=True)
    (left / "alive").write_bytes(b"")
    (left / "upload").write_bytes(b"half")
    (tmp_path / "uploads" / "of-an-earlier-version").write_bytes(b"half")
    with EmbeddedRegistry(tmp_path):
        assert not left.exists()
        assert len(list((tmp_path / "uploads").iterdir())) == 1


def test_what_a_failed_write_left_is_taken_back(tmp_path):
    """A disk may take a part of a piece before it is full; the client sends the whole piece again."""
    store = RegistryStore(tmp_path)
    store.prepare()
    upload, limits = store.begin("a"), resource.getrlimit(resource.RLIMIT_FSIZE)
    upload.append(b"a" * 1000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            upload.append(b"b" * 1000)
        left = upload.path.stat().st_size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (left, upload.size) == (1000, 1000)
    upload.append(b"b" * 1000)
    assert store.finish(upload) == digest_of(b"a" * 1000 + b"b" * 1000)
    assert store.blob_path(upload.digest).read_bytes() == b"a" * 1000 + b"b" * 1000
    store.close()


def test_an_upload_that_nobody_continues_is_forgotten(tmp_path, monkeypatch):
    with EmbeddedRegistry(tmp_path) as server, httpx.Client(base_url=server.registry.url) as web:
        first = web.post("/v2/a/blobs/uploads/").headers["location"]
        assert web.patch(first, content=b"x" * 100).status_code == 202
        web.post("/v2/a/blobs/uploads/")
        assert web.get(first).status_code == 204
        monkeypatch.setattr(blob_api, "_PATIENCE", -1.0)
        web.post("/v2/a/blobs/uploads/")
        assert web.get(first).status_code == 404
        assert {path.name for path in (tmp_path / "uploads").rglob("*") if path.is_file()} == {"alive"}


def test_a_full_disk_is_told_and_leaves_no_half_blob(tmp_path, monkeypatch, caplog):
    def full(self, data):
        raise disk_full(self.path.parent)

    monkeypatch.setattr(storage.UploadSession, "append", full)
    with EmbeddedRegistry(tmp_path) as server, httpx.Client(base_url=server.registry.url) as web:
        at = web.post("/v2/a/blobs/uploads/").headers["location"]
        answer = web.put(at, params={"digest": digest_of(b"x")}, content=b"x")
        assert answer.status_code == 507
        assert "no space" in answer.json()["errors"][0]["message"]
        assert str(tmp_path) not in answer.text
        assert str(tmp_path) in caplog.text
        assert web.head(f"/v2/a/blobs/{digest_of(b'x')}").status_code == 404


def test_a_taken_port_and_a_bad_directory_are_told(server, tmp_path):
    with pytest.raises(RegistryError, match="can't listen"), EmbeddedRegistry(tmp_path, port=server.port):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="did not start"), EmbeddedRegistry(tmp_path / "file"):
        pass


def test_it_ends_with_its_context(tmp_path):
    with EmbeddedRegistry(tmp_path) as server:
        port = server.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 2)
    assert not [thread for thread in threading.enumerate() if thread.name == "flops-registry" and not thread.daemon]
