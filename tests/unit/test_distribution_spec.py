"""The embedded registry by the distribution specification 1.1: a test for each endpoint and for the sections' own demands.

Names follow the specification's table of endpoints (end-1 to end-13) and the headings of its sections.
"""

import hashlib
import json
import os

import httpx
import pytest

from flops.registry.app import EmbeddedRegistry

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


ABSENT = digest_of(b"absent")


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)  # no test here cuts the power
        with (
            EmbeddedRegistry(tmp_path_factory.mktemp("registry")) as server,
            httpx.Client(base_url=server.registry.url, trust_env=False) as client,
        ):
            yield client


@pytest.fixture
def v2(request):
    """The path of a repository of the test's own."""
    return "/v2/spec/" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]


def begin(web, v2):
    answer = web.post(f"{v2}/blobs/uploads/")
    assert answer.status_code == 202
    return answer.headers["location"]


def blob(web, v2, data):
    done = web.put(begin(web, v2), params={"digest": digest_of(data)}, content=data)
    assert done.status_code == 201
    return {"mediaType": "application/octet-stream", "digest": digest_of(data), "size": len(data)}


def manifest(web, v2, *, salt=b"", **more):
    """The document of a manifest whose blobs are there."""
    config, layer = blob(web, v2, b"{}" + salt), blob(web, v2, b"layer" + salt)
    value = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer], **more}
    return json.dumps(value).encode()


def put(web, v2, reference, document, media_type=MANIFEST):
    return web.put(f"{v2}/manifests/{reference}", content=document, headers={"Content-Type": media_type})


def codes(answer):
    return [error["code"] for error in answer.json()["errors"]]


def referrer(web, v2, subject, number, kind="text/x"):
    about = {"mediaType": MANIFEST, "digest": digest_of(subject), "size": len(subject)}
    document = manifest(web, v2, salt=b"%d" % number, subject=about, artifactType=kind, annotations={"n": str(number)})
    return document, put(web, v2, digest_of(document), document)


# --- determining support ----------------------------------------------------------------------------------------------
def test_end_1_the_api_is_there(web):
    assert web.get("/v2/").status_code == 200


# --- pull -------------------------------------------------------------------------------------------------------------
def test_end_2_a_blob_is_pulled(web, v2):
    blob(web, v2, b"0123456789")
    path = f"{v2}/blobs/{digest_of(b'0123456789')}"
    answer, head = web.get(path), web.head(path)
    assert (answer.status_code, answer.content) == (200, b"0123456789")
    assert answer.headers["docker-content-digest"] == digest_of(b"0123456789")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "10")


def test_end_2_a_blob_that_is_not_there_is_404(web, v2):
    assert web.get(f"{v2}/blobs/{ABSENT}").status_code == 404
    assert codes(web.get(f"{v2}/blobs/{ABSENT}")) == ["BLOB_UNKNOWN"]
    assert web.head(f"{v2}/blobs/{ABSENT}").status_code == 404


def test_end_2_a_range_of_a_blob_is_pulled(web, v2):
    blob(web, v2, b"0123456789")
    path = f"{v2}/blobs/{digest_of(b'0123456789')}"
    answer = web.get(path, headers={"Range": "bytes=3-5"})
    assert (answer.status_code, answer.content, answer.headers["content-range"]) == (206, b"345", "bytes 3-5/10")
    assert web.get(path, headers={"Range": "bytes=10-"}).status_code == 416


def test_end_3_a_manifest_is_pulled_by_tag_and_digest(web, v2):
    document = manifest(web, v2)
    put(web, v2, "v1", document)
    for reference in ("v1", digest_of(document)):
        answer, head = web.get(f"{v2}/manifests/{reference}"), web.head(f"{v2}/manifests/{reference}")
        assert (answer.status_code, answer.content) == (200, document)
        assert answer.headers["content-type"] == head.headers["content-type"] == MANIFEST
        assert answer.headers["docker-content-digest"] == digest_of(document)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(document)))


def test_end_3_a_manifest_that_is_not_there_is_404(web, v2):
    for reference in ("none", ABSENT):
        assert web.get(f"{v2}/manifests/{reference}").status_code == 404
        assert codes(web.get(f"{v2}/manifests/{reference}")) == ["MANIFEST_UNKNOWN"]
        assert web.head(f"{v2}/manifests/{reference}").status_code == 404


# --- push: blobs ------------------------------------------------------------------------------------------------------
def test_end_4a_and_6_a_blob_is_pushed_monolithically_by_post_then_put(web, v2):
    at = begin(web, v2)
    done = web.put(
        at,
        params={"digest": digest_of(b"whole")},
        content=b"whole",
        headers={"Content-Type": "application/octet-stream", "Content-Length": "5"},
    )
    assert done.status_code == 201
    assert web.get(done.headers["location"]).content == b"whole"


def test_end_4b_a_blob_is_pushed_by_a_single_post(web, v2):
    done = web.post(f"{v2}/blobs/uploads/", params={"digest": digest_of(b"once")}, content=b"once")
    assert done.status_code == 201
    assert web.get(done.headers["location"]).content == b"once"


def test_end_5_and_6_a_blob_is_pushed_in_chunks(web, v2):
    first = web.patch(begin(web, v2), content=b"aaa", headers={"Content-Range": "0-2", "Content-Length": "3"})
    assert (first.status_code, first.headers["range"]) == (202, "0-2")
    second = web.patch(first.headers["location"], content=b"bbb", headers={"Content-Range": "3-5"})
    assert (second.status_code, second.headers["range"]) == (202, "0-5")
    done = web.put(
        second.headers["location"],
        params={"digest": digest_of(b"aaabbbcc")},
        content=b"cc",
        headers={"Content-Range": "6-7"},
    )
    assert done.status_code == 201
    assert web.get(done.headers["location"]).content == b"aaabbbcc"


@pytest.mark.parametrize("range_", ["1-3", "6-8", "0-2"])
def test_end_5_a_chunk_out_of_order_is_416(web, v2, range_):
    at = web.patch(begin(web, v2), content=b"aaa", headers={"Content-Range": "0-2"}).headers["location"]
    refused = web.patch(at, content=b"bbb", headers={"Content-Range": range_})
    assert refused.status_code == 416
    assert web.get(at).headers["range"] == "0-2"


def test_end_6_another_digest_is_refused(web, v2):
    refused = web.put(begin(web, v2), params={"digest": ABSENT}, content=b"other")
    assert (refused.status_code, codes(refused)) == (400, ["DIGEST_INVALID"])
    assert web.head(f"{v2}/blobs/{ABSENT}").status_code == 404


def test_end_13_the_status_of_an_upload_is_told(web, v2):
    at = web.patch(begin(web, v2), content=b"aaaa").headers["location"]
    status = web.get(at)
    assert (status.status_code, status.headers["range"]) == (204, "0-3")
    assert web.patch(status.headers["location"], content=b"b", headers={"Content-Range": "4-4"}).status_code == 202


def test_canceling_a_blob_upload(web, v2):
    at = begin(web, v2)
    assert web.delete(at).status_code == 204
    assert (web.get(at).status_code, codes(web.get(at))) == (404, ["BLOB_UPLOAD_UNKNOWN"])


def test_end_11_a_blob_is_mounted_from_another_repository(web, v2):
    digest = blob(web, f"{v2}/from", b"mounted")["digest"]
    name = f"{v2}/from".removeprefix("/v2/")
    done = web.post(f"{v2}/blobs/uploads/", params={"mount": digest, "from": name})
    assert (done.status_code, done.headers["location"]) == (201, f"{v2}/blobs/{digest}")
    assert web.get(done.headers["location"]).content == b"mounted"


def test_end_11_a_mount_that_is_not_possible_begins_an_upload(web, v2):
    begun = web.post(f"{v2}/blobs/uploads/", params={"mount": ABSENT, "from": "no/such"})
    assert begun.status_code == 202
    assert web.put(begun.headers["location"], params={"digest": ABSENT}, content=b"absent").status_code == 201


def test_end_11_a_mount_without_from_takes_what_any_repository_holds(web, v2):
    digest = blob(web, f"{v2}/from", v2.encode())["digest"]
    done = web.post(f"{v2}/blobs/uploads/", params={"mount": digest})
    assert (done.status_code, done.headers["location"]) == (201, f"{v2}/blobs/{digest}")
    assert web.get(done.headers["location"]).content == v2.encode()


def test_end_11_a_mount_without_from_of_what_no_repository_holds_begins_an_upload(web, v2):
    deleted = blob(web, f"{v2}/from", b"deleted from " + v2.encode())["digest"]
    assert web.delete(f"{v2}/from/blobs/{deleted}").status_code == 202
    for digest in ("sha256:" + "0" * 64, deleted):  # the bytes of the second lie here until they are collected
        begun = web.post(f"{v2}/blobs/uploads/", params={"mount": digest})
        assert begun.status_code == 202
        assert begun.headers["location"].startswith(f"{v2}/blobs/uploads/")


# --- push: manifests --------------------------------------------------------------------------------------------------
def test_end_7_a_manifest_is_pushed(web, v2):
    document = manifest(web, v2)
    done = put(web, v2, "v1", document)
    assert (done.status_code, done.headers["docker-content-digest"]) == (201, digest_of(document))
    assert web.get(done.headers["location"]).content == document
    assert put(web, v2, digest_of(document), document).status_code == 201


def test_end_7_a_manifest_keeps_its_bytes(web, v2):
    document = b"\n " + manifest(web, v2).replace(b",", b" ,\n")
    assert put(web, v2, "spaced", document).status_code == 201
    assert web.get(f"{v2}/manifests/spaced").content == document


def test_end_7_a_manifest_of_absent_blobs_is_refused(web, v2):
    value = json.loads(manifest(web, v2))
    value["layers"][0]["digest"] = ABSENT
    refused = put(web, v2, "v1", json.dumps(value).encode())
    assert (refused.status_code, codes(refused)) == (400, ["MANIFEST_BLOB_UNKNOWN"])


def test_end_7_an_index_over_manifests_is_pushed(web, v2):
    document = manifest(web, v2)
    put(web, v2, digest_of(document), document)
    entry = {"mediaType": MANIFEST, "digest": digest_of(document), "size": len(document)}
    whole = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
    assert put(web, v2, "all", whole, INDEX).status_code == 201
    assert web.get(f"{v2}/manifests/all").headers["content-type"] == INDEX


def test_end_7_an_artifact_with_an_empty_config_is_pushed(web, v2):
    empty = {**blob(web, v2, b"{}"), "mediaType": EMPTY}
    value = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "text/x", "config": empty, "layers": [empty]}
    assert put(web, v2, "artifact", json.dumps(value).encode()).status_code == 201


def test_end_7_a_manifest_with_a_subject_tells_it(web, v2):
    subject = manifest(web, v2)
    put(web, v2, "v1", subject)
    _, pushed = referrer(web, v2, subject, 1)
    assert (pushed.status_code, pushed.headers["oci-subject"]) == (201, digest_of(subject))


def test_end_7_a_subject_may_be_absent(web, v2):
    _, pushed = referrer(web, v2, b"not there yet", 1)
    assert pushed.status_code == 201


# --- content discovery ------------------------------------------------------------------------------------------------
def test_end_8a_tags_are_listed(web, v2):
    document = manifest(web, v2)
    for tag in ("b", "A", "c"):
        put(web, v2, tag, document)
    assert web.get(f"{v2}/tags/list").json() == {"name": v2.removeprefix("/v2/"), "tags": ["A", "b", "c"]}
    assert web.get(f"{v2}/none/tags/list").status_code == 404


def test_end_8b_tags_are_listed_by_number_and_last(web, v2):
    document = manifest(web, v2)
    for tag in ("b", "a", "c"):
        put(web, v2, tag, document)
    first = web.get(f"{v2}/tags/list", params={"n": 2})
    assert first.json()["tags"] == ["a", "b"]
    assert web.get(first.links["next"]["url"]).json()["tags"] == ["c"]
    assert web.get(f"{v2}/tags/list", params={"n": 2, "last": "b"}).json()["tags"] == ["c"]
    assert web.get(f"{v2}/tags/list", params={"n": 0}).json()["tags"] == []


def test_end_12a_referrers_are_listed(web, v2):
    subject = manifest(web, v2)
    put(web, v2, "v1", subject)
    documents = [referrer(web, v2, subject, number)[0] for number in range(3)]
    answer = web.get(f"{v2}/referrers/{digest_of(subject)}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, INDEX)
    assert (answer.json()["schemaVersion"], answer.json()["mediaType"]) == (2, INDEX)
    entries = {entry["digest"]: entry for entry in answer.json()["manifests"]}
    assert set(entries) == {digest_of(document) for document in documents}
    assert entries[digest_of(documents[1])] == {
        "mediaType": MANIFEST,
        "digest": digest_of(documents[1]),
        "size": len(documents[1]),
        "artifactType": "text/x",
        "annotations": {"n": "1"},
    }


def test_end_12a_nothing_has_no_referrers_and_is_no_404(web, v2):
    answer = web.get(f"{v2}/referrers/{ABSENT}")
    assert (answer.status_code, answer.json()["manifests"]) == (200, [])


def test_end_12a_a_config_type_stands_in_for_the_artifact_type(web, v2):
    subject = manifest(web, v2)
    put(web, v2, "v1", subject)
    about = {"mediaType": MANIFEST, "digest": digest_of(subject), "size": len(subject)}
    document = manifest(web, v2, salt=b"0", subject=about)
    put(web, v2, digest_of(document), document)
    entry = web.get(f"{v2}/referrers/{digest_of(subject)}").json()["manifests"][0]
    assert entry["artifactType"] == "application/octet-stream"


def test_end_12b_referrers_are_filtered_by_artifact_type(web, v2):
    subject = manifest(web, v2)
    put(web, v2, "v1", subject)
    wanted, _ = referrer(web, v2, subject, 1, "text/wanted+json")
    referrer(web, v2, subject, 2, "text/other")
    answer = web.get(f"{v2}/referrers/{digest_of(subject)}", params={"artifactType": "text/wanted+json"})
    assert [entry["digest"] for entry in answer.json()["manifests"]] == [digest_of(wanted)]
    assert answer.headers["oci-filters-applied"] == "artifactType"


# --- content management -----------------------------------------------------------------------------------------------
def test_end_9_a_tag_is_deleted_and_its_manifest_stays(web, v2):
    document = manifest(web, v2)
    put(web, v2, "v1", document)
    assert web.delete(f"{v2}/manifests/v1").status_code == 202
    assert web.get(f"{v2}/manifests/v1").status_code == 404
    assert web.get(f"{v2}/manifests/{digest_of(document)}").status_code == 200
    assert web.get(f"{v2}/tags/list").json()["tags"] == []


def test_end_9_a_manifest_is_deleted_with_its_tags_and_as_a_referrer(web, v2):
    subject = manifest(web, v2)
    put(web, v2, "v1", subject)
    document, _ = referrer(web, v2, subject, 1)
    put(web, v2, "other", document)
    assert web.delete(f"{v2}/manifests/{digest_of(document)}").status_code == 202
    assert web.get(f"{v2}/manifests/other").status_code == 404
    assert web.get(f"{v2}/tags/list").json()["tags"] == ["v1"]
    assert web.get(f"{v2}/referrers/{digest_of(subject)}").json()["manifests"] == []
    assert web.delete(f"{v2}/manifests/{digest_of(document)}").status_code == 404


def test_end_9_referrers_outlive_their_subject(web, v2):
    subject = manifest(web, v2)
    put(web, v2, "v1", subject)
    document, _ = referrer(web, v2, subject, 1)
    assert web.delete(f"{v2}/manifests/{digest_of(subject)}").status_code == 202
    listed = web.get(f"{v2}/referrers/{digest_of(subject)}").json()["manifests"]
    assert [entry["digest"] for entry in listed] == [digest_of(document)]


def test_end_10_a_blob_is_deleted(web, v2):
    digest = blob(web, v2, b"gone soon")["digest"]
    assert web.delete(f"{v2}/blobs/{digest}").status_code == 202
    assert web.get(f"{v2}/blobs/{digest}").status_code == 404
    assert web.delete(f"{v2}/blobs/{digest}").status_code == 404


# --- error codes ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/manifests/none", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/manifests/.INVALID_MANIFEST_NAME", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/manifests/sha256:x", 404, "MANIFEST_UNKNOWN"),
        ("GET", f"/blobs/{ABSENT}", 404, "BLOB_UNKNOWN"),
        ("GET", "/blobs/sha256:x", 400, "DIGEST_INVALID"),
        ("GET", "/blobs/uploads/none", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("GET", "/tags/list", 404, "NAME_UNKNOWN"),
        ("PUT", "/manifests/v1", 400, "MANIFEST_INVALID"),
        ("POST", "/UPPER/blobs/uploads/", 400, "NAME_INVALID"),
        ("POST", "/blobs/sha256:x", 405, "UNSUPPORTED"),
    ],
)
def test_errors_have_the_code_of_the_table(web, v2, method, path, status, code):
    answer = web.request(method, v2 + path)
    assert (answer.status_code, codes(answer)) == (status, [code])
    assert answer.headers["content-type"] == "application/json"
