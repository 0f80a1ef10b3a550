"""Artifacts and referrers through the client, and every document that is pushed against the image specification's schemas."""

import base64
import io
import json
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flops.errors import BadImage, DeletesUnsupported, RegistryAuth, RegistryError, RegistryRefused
from flops.http import Retry
from flops.oci.artifacts import (
    EMPTY,
    EMPTY_TYPE,
    Content,
    artifact_document,
    fallback_tag,
    parse_artifact,
    parse_referrers,
    referrers_document,
)
from flops.oci.blobs import BlobStore, sha256
from flops.oci.client import RegistryClient
from flops.oci.descriptor import CONFIG, INDEX, MANIFEST, Descriptor
from flops.oci.image import ImageConfig, compose, index
from flops.oci.layer import LayerWriter
from flops.oci.reference import Registry
from flops.platforms import Platform
from flops.recipe import Compression
from flops.registry.app import EmbeddedRegistry

# --- the image specification's schemas, version 1.1: what its prose and tables demand ----------------------------------
_TYPE = {
    "type": "string",
    "pattern": r"^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}$",
}
_ANNOTATIONS = {"type": "object", "propertyNames": {"minLength": 1}, "additionalProperties": {"type": "string"}}
_DESCRIPTOR = {
    "type": "object",
    "required": ["mediaType", "digest", "size"],
    "properties": {
        "mediaType": _TYPE,
        "digest": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
        "size": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
        "urls": {"type": "array", "items": {"type": "string", "format": "uri"}},
        "annotations": _ANNOTATIONS,
        "data": {"type": "string", "contentEncoding": "base64"},
        "artifactType": _TYPE,
        "platform": {
            "type": "object",
            "required": ["architecture", "os"],
            "properties": {"architecture": {"enum": ["amd64", "arm64"]}, "os": {"const": "linux"}},
        },
    },
}
_MANIFEST = {
    "type": "object",
    "required": ["schemaVersion", "mediaType", "config", "layers"],
    "properties": {
        "schemaVersion": {"const": 2},
        "mediaType": {"const": MANIFEST},
        "artifactType": _TYPE,
        "config": _DESCRIPTOR,
        "layers": {"type": "array", "minItems": 1, "items": _DESCRIPTOR},
        "subject": _DESCRIPTOR,
        "annotations": _ANNOTATIONS,
    },
    "additionalProperties": False,
    # An artifact's type must be told where its config is empty.
    "if": {"properties": {"config": {"properties": {"mediaType": {"const": EMPTY_TYPE}}}}},
    "then": {"required": ["artifactType"]},
}
_INDEX = {
    "type": "object",
    "required": ["schemaVersion", "mediaType", "manifests"],
    "properties": {
        "schemaVersion": {"const": 2},
        "mediaType": {"const": INDEX},
        "artifactType": _TYPE,
        "manifests": {"type": "array", "items": _DESCRIPTOR},
        "subject": _DESCRIPTOR,
        "annotations": _ANNOTATIONS,
    },
    "additionalProperties": False,
}
_TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"}
_WORDS = {"type": "array", "items": {"type": "string"}}
_CONFIG = {
    "type": "object",
    "required": ["architecture", "os", "rootfs"],
    "properties": {
        "created": _TIME,
        "author": {"type": "string"},
        "architecture": {"enum": ["amd64", "arm64"]},
        "os": {"const": "linux"},
        "config": {
            "type": "object",
            "properties": {
                "User": {"type": "string"},
                "ExposedPorts": {"type": "object"},
                "Env": {"type": "array", "items": {"type": "string", "pattern": "^[^=]+=.*$"}},
                "Entrypoint": _WORDS,
                "Cmd": _WORDS,
                "Volumes": {"type": "object"},
                "WorkingDir": {"type": "string"},
                "Labels": _ANNOTATIONS,
                "StopSignal": {"type": "string"},
            },
            "additionalProperties": False,
        },
        "rootfs": {
            "type": "object",
            "required": ["type", "diff_ids"],
            "properties": {
                "type": {"const": "layers"},
                "diff_ids": {"type": "array", "items": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}},
            },
        },
        "history": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "created": _TIME,
                    "created_by": {"type": "string"},
                    "author": {"type": "string"},
                    "comment": {"type": "string"},
                    "empty_layer": {"type": "boolean"},
                },
                "additionalProperties": False,
            },
        },
    },
}
LOCAL = Registry.parse("127.0.0.1:5")
SCHEMAS = {MANIFEST: _MANIFEST, INDEX: _INDEX, CONFIG: _CONFIG}


class Written(httpx.BaseTransport):
    """Keeps every manifest that is pushed, and may have no list of referrers, as docker-registry 2.8."""

    def __init__(self, *, referrers=True):
        self.referrers = referrers
        self.documents, self.methods = [], []
        self.inner = httpx.HTTPTransport()

    def handle_request(self, request):
        self.methods.append(request.method)
        if request.method == "PUT" and "/manifests/" in request.url.path:
            body = b"".join(request.stream)
            self.documents.append((request.headers["content-type"], body))
            request = httpx.Request(request.method, request.url, headers=request.headers, content=body)
        if not self.referrers and "/referrers/" in request.url.path:
            return httpx.Response(404, content=b"404 page not found")
        answer = self.inner.handle_request(request)
        if not self.referrers:
            answer.headers.pop("oci-subject", None)
        return answer

    def close(self):
        self.inner.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)  # no test here cuts the power
        with EmbeddedRegistry(tmp_path_factory.mktemp("registry")) as running:
            yield running


@pytest.fixture(params=[True, False], ids=["referrers", "tag index"])
def line(request):
    return Written(referrers=request.param)


@pytest.fixture
def client(server, line):
    with RegistryClient(server.registry, transport=line, retry=Retry(sleep=lambda _seconds: None)) as one:
        yield one


@pytest.fixture
def name():
    return f"t/{os.urandom(6).hex()}"


def subject_of(client, name):
    made = client.put_artifact(name, "subject", "text/subject", Content(data=os.urandom(9)))
    return Descriptor(media_type=made.media_type, digest=made.digest, size=made.size)


# --- documents ---
def test_every_document_that_is_pushed_fulfils_the_schemas(client, line, name, tmp_path):
    store, configs = BlobStore(tmp_path), []
    layers = []
    for compression in Compression:
        with store.writer() as blob:
            writer = LayerWriter(blob, compression=compression)
            writer.file("data", b"x" * 1000)
            layers.append(writer.close())
            blob.commit(layers[-1].digest)
    images = [
        compose(
            ImageConfig(
                platform=platform,
                created="2024-01-01T00:00:00Z",
                labels={"a": "b"},
                environment={"A": "1"},
                entrypoint=("/x",),
                command=("y",),
                user="65532",
                working_directory="/w",
            ),
            layers,
            {"io.flops.lock": "x"},
        )
        for platform in Platform
    ]
    whole = index(images, {"io.flops.recipe": "r"})
    client.push_index(name, whole, store, ["v1"])
    configs = [(CONFIG, image.config) for image in images]
    subject = Descriptor(media_type=INDEX, digest=whole.digest, size=len(whole.document))
    held = Descriptor(media_type=layers[0].media_type, digest=layers[0].digest, size=layers[0].size)
    client.put_artifact(
        name, "layer-" + "0" * 64, "application/vnd.flops.layer.v1+json", Content(data=b"{}"), blobs=[held]
    )
    client.put_referrer(
        name, subject, "application/vnd.cyclonedx+json", Content(data=b"{}" * 50_000), annotations={"a": "b"}
    )
    documents = [*line.documents, *configs]
    assert len(documents) >= 8
    for media_type, document in documents:
        jsonschema.validate(json.loads(document), SCHEMAS[media_type], cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    "wrong", [{"schemaVersion": 1}, {"layers": []}, {"config": {"mediaType": EMPTY_TYPE}}, {"more": 1}]
)
def test_the_schemas_refuse_what_is_wrong(wrong):
    value = json.loads(artifact_document("text/x", Content(data=b"x"))) | wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, _MANIFEST)


@settings(max_examples=60, deadline=None)
@given(
    data=st.binary(max_size=200),
    kind=st.sampled_from(["text/x", "application/vnd.flops.layer.v1+json"]),
    annotations=st.dictionaries(st.text(min_size=1, max_size=9), st.text(max_size=9), max_size=3),
    embedded=st.booleans(),
    about=st.none() | st.binary(max_size=5),
)
def test_an_artifact_is_read_as_it_was_written(data, kind, annotations, embedded, about):
    subject = Descriptor(media_type=INDEX, digest=sha256(about), size=len(about)) if about is not None else None
    further = Descriptor(media_type="text/y", digest=sha256(b"y"), size=1)
    content = Content(data=data, annotations=annotations, embedded=embedded)
    document = artifact_document(kind, content, blobs=[further], annotations=annotations, subject=subject)
    jsonschema.validate(json.loads(document), _MANIFEST)
    parsed = parse_artifact(document)
    assert (parsed.artifact_type, parsed.annotations, parsed.subject) == (kind, annotations, subject)
    assert parsed.blobs == (content.descriptor, further)
    assert parsed.content == (data if embedded else None)


def wrong_artifacts():
    good = json.loads(artifact_document("text/x", Content(data=b"x")))
    yield b""
    yield b"[]"
    yield b"[" * 100_000
    yield b"\xff"
    for change in (
        {"layers": []},
        {"layers": 3},
        {"layers": [3]},
        {"config": None},
        {"annotations": []},
        {"subject": {"digest": "x"}},
        {"layers": [{**good["layers"][0], "data": "!"}]},
        {"layers": [{**good["layers"][0], "data": base64.b64encode(b"y").decode()}]},
        {"layers": [{**good["layers"][0], "size": 2}]},
        {"layers": [{**good["layers"][0], "size": -1}]},
        {"layers": [{**good["layers"][0], "digest": "../../x"}]},
    ):
        yield json.dumps(good | change).encode()


@pytest.mark.parametrize("document", list(wrong_artifacts()), ids=str)
def test_what_is_no_artifact_is_refused(document):
    with pytest.raises(BadImage):
        parse_artifact(document)


def test_an_index_of_referrers_does_not_depend_on_the_order():
    entries = [Descriptor(media_type=MANIFEST, digest=sha256(b"%d" % number), size=1) for number in range(5)]
    random.Random(1).shuffle(mixed := [*entries, entries[0]])
    assert referrers_document(mixed) == referrers_document(entries)
    assert {entry.digest for entry in parse_referrers(referrers_document(mixed))} == {one.digest for one in entries}


# --- in a registry ---
@pytest.mark.parametrize("size", [10, 200_000])
def test_an_artifact_in_a_registry(client, name, size):
    data = os.urandom(size)
    held = Content(data=b"held")
    client.push_blob(name, held.descriptor.digest, 4, lambda: io.BytesIO(held.data))
    made = client.put_artifact(name, "t", "text/x", Content(data=data), blobs=[held.descriptor], annotations={"a": "b"})
    for reference in ("t", made.digest):
        found = client.get_artifact(name, reference, artifact_type="text/x")
        assert (found.content, found.annotations, found.descriptor) == (data, {"a": "b"}, made)
        assert found.blobs[1] == held.descriptor
    assert client.get_artifact(name, "t", artifact_type="text/y") is None
    assert client.get_artifact(name, "none") is None


def test_an_artifact_of_an_absent_blob_is_refused(client, name):
    absent = Descriptor(media_type="text/x", digest=sha256(b"absent"), size=6)
    with pytest.raises(RegistryRefused, match="MANIFEST_BLOB_UNKNOWN"):
        client.put_artifact(name, "t", "text/x", Content(data=b"x"), blobs=[absent])


def test_content_that_is_longer_than_its_descriptor_says_is_not_read(server, name):
    with RegistryClient(server.registry, retry=Retry(sleep=lambda _seconds: None)) as client:
        made = Content(data=b"long content", embedded=False)
        document = json.loads(artifact_document("text/x", made))
        document["layers"][0]["size"] = 3
        client.put_artifact(name, "good", "text/x", made)
        client.put_manifest(name, "short", MANIFEST, json.dumps(document).encode())
        with pytest.raises(BadImage, match="longer than"):
            client.get_artifact(name, "short")
        document["layers"][0]["size"] = 1 << 40
        client.put_manifest(name, "huge", MANIFEST, json.dumps(document).encode())
        with pytest.raises(BadImage, match="are read at most"):
            client.get_artifact(name, "huge")


def test_referrers_by_type(client, line, name):
    subject = subject_of(client, name)
    assert client.referrers(name, subject.digest) == ()
    made = [client.put_referrer(name, subject, f"text/x+{n % 2}", Content(data=b"%d" % n)) for n in range(4)]
    again = client.put_referrer(name, subject, "text/x+0", Content(data=b"0"))
    assert again == made[0]
    assert {entry.digest for entry in client.referrers(name, subject.digest)} == {one.digest for one in made}
    assert {entry.digest for entry in client.referrers(name, subject.digest, "text/x+1")} == {
        made[1].digest,
        made[3].digest,
    }
    assert (fallback_tag(subject.digest) in client.tags(name)) is not line.referrers


def test_referrers_that_are_pushed_at_the_same_time_are_all_listed(client, name):
    subject = subject_of(client, name)
    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(lambda n: client.put_referrer(name, subject, "text/x", Content(data=b"%d" % n)), range(12))
        )
    assert {entry.digest for entry in client.referrers(name, subject.digest)} == {one.digest for one in made}


def test_another_builder_that_overwrites_the_tag_index_costs_no_entry(server, name):
    """Their write falls between our reading and our writing: seen by reading again."""
    line = Written(referrers=False)
    with RegistryClient(server.registry, transport=line) as client, RegistryClient(server.registry) as other:
        subject = subject_of(client, name)
        theirs = Descriptor(media_type=MANIFEST, digest=subject.digest, size=subject.size, artifact_type="text/theirs")
        tag, send, done = fallback_tag(subject.digest), line.inner.handle_request, threading.Event()

        def meanwhile(request):
            answer = send(request)
            if request.method == "PUT" and request.url.path.endswith(tag) and not done.is_set():
                done.set()
                other.put_manifest(name, tag, INDEX, referrers_document([theirs]))
            return answer

        line.inner.handle_request = meanwhile
        made = client.put_referrer(name, subject, "text/x", Content(data=b"ours"))
        assert {entry.digest for entry in client.referrers(name, subject.digest)} == {made.digest, theirs.digest}


def test_a_referrer_that_is_deleted_is_listed_no_more(client, name):
    subject = subject_of(client, name)
    made = [client.put_referrer(name, subject, "text/x", Content(data=b"%d" % n)) for n in range(2)]
    assert client.delete_manifest(name, made[0].digest, subject=subject.digest)
    assert [entry.digest for entry in client.referrers(name, subject.digest)] == [made[1].digest]
    assert not client.delete_manifest(name, made[0].digest, subject=subject.digest)


def test_an_empty_config_is_what_the_specification_says():
    assert sha256(EMPTY) == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


# --- lists and deletes ---
def answers(*found):
    """A registry that gives these answers, one after the other."""
    rest = list(found)
    return RegistryClient(LOCAL, transport=httpx.MockTransport(lambda _request: rest.pop(0)))


def test_the_catalog_by_pages(client, name):
    for number in range(3):
        client.put_artifact(f"{name}/{number}", "t", "text/x", Content(data=b"x"))
    assert {f"{name}/{number}" for number in range(3)} <= set(client.catalog())
    onward = {"Link": '</v2/_catalog?last=b&n=2>; rel="next"'}
    paged = answers(
        httpx.Response(200, json={"repositories": ["a", "b", "../x", 7]}, headers=onward),
        httpx.Response(200, json={"repositories": ["c"]}, headers=onward),
        httpx.Response(200, json={"repositories": ["never asked for"]}),
    )
    assert paged.catalog() == ("a", "b", "c")


@pytest.mark.parametrize(("status", "error"), [(401, RegistryAuth), (404, RegistryRefused), (405, RegistryRefused)])
def test_a_registry_that_lists_no_repositories(status, error):
    with pytest.raises(error, match="does not list its repositories"):
        answers(httpx.Response(status)).catalog()


def test_a_list_that_leads_elsewhere_is_not_followed():
    away = {"Link": '<http://169.254.169.254/x>; rel="next"'}
    client = RegistryClient(
        Registry.parse("registry.example"),
        transport=httpx.MockTransport(lambda _request: httpx.Response(200, json={"tags": ["a"]}, headers=away)),
    )
    with pytest.raises(RegistryError):
        client.tags("a/b")


@pytest.mark.parametrize("status", [400, 405, 501])
def test_a_registry_without_deletes_is_told(status):
    refused = httpx.Response(status, json={"errors": [{"code": "UNSUPPORTED"}]})
    with pytest.raises(DeletesUnsupported, match="deletes no manifests") as caught:
        answers(refused).delete_manifest("a", sha256(b"x"))
    assert "operator" in caught.value.hint
    with pytest.raises(DeletesUnsupported, match="deletes no tags") as caught:
        answers(httpx.Response(status)).delete_tag("a", "v1")
    assert "by its digest" in caught.value.hint


def test_referrers_of_a_registry_that_answers_to_everything():
    """A page of something else is no list; nor is a tag of that name that holds another thing."""
    page = httpx.Response(200, content=b"<html>", headers={"content-type": "text/html"})
    assert answers(page, httpx.Response(404)).referrers("a", sha256(b"x")) == ()
    other = httpx.Response(200, content=b'{"manifests": 3}', headers={"content-type": INDEX})
    assert answers(httpx.Response(404), other).referrers("a", sha256(b"x")) == ()


# --- whether a push could succeed ---
def test_a_push_that_could_succeed_leaves_nothing(client, line, name):
    client.check_push([f"{name}/learner", f"{name}/aggregator"])
    assert client.tags(f"{name}/learner") == ()
    assert line.methods.count("DELETE") == line.methods.count("POST") == 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(415), RegistryRefused),
        (
            httpx.Response(400, json={"errors": [{"code": "MANIFEST_INVALID", "message": "unknown media type"}]}),
            RegistryRefused,
        ),
        (httpx.Response(405, json={"errors": [{"code": "UNSUPPORTED", "message": "Content-Type"}]}), RegistryRefused),
        (httpx.Response(403), RegistryAuth),
        (httpx.Response(400, json={"errors": [{"code": "MANIFEST_INVALID", "message": "no such manifest"}]}), None),
        (httpx.Response(404, json={"errors": [{"code": "MANIFEST_BLOB_UNKNOWN"}]}), None),
        (httpx.Response(201), None),
    ],
)
def test_a_registry_that_takes_no_indexes_is_told_before_any_work(answer, error):
    def answered(request):
        begun = httpx.Response(202, headers={"Location": "/v2/a/blobs/uploads/1"})
        return answer if request.method == "PUT" else begun if request.method == "POST" else httpx.Response(204)

    client = RegistryClient(LOCAL, transport=httpx.MockTransport(answered))
    if error is None:
        client.check_push(["a", "b"])
    else:
        with pytest.raises(error) as caught:
            client.check_push(["a", "b"])
        assert type(caught.value) is error


def test_a_repository_that_is_not_ours_to_push_to_is_told():
    def answered(request):
        return httpx.Response(
            403 if "/theirs/" in request.url.path else 202, headers={"Location": "/v2/a/blobs/uploads/1"}
        )

    client = RegistryClient(LOCAL, transport=httpx.MockTransport(answered))
    with pytest.raises(RegistryAuth, match="theirs"):
        client.check_push(["ours", "theirs"])
