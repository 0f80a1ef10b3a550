"""Image documents: composed to the byte, read from others without trust."""

import json

import pytest

from flops.errors import BadImage
from flops.oci.image import (
    CONFIG,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    Descriptor,
    ImageConfig,
    compose,
    index,
    parse_config,
    parse_index,
    parse_manifest,
)
from flops.oci.layer import GZIP, ZSTD, Layer
from flops.platforms import Platform

DIGESTS = ["sha256:" + character * 64 for character in "abcdef"]


def layer(number, **fields):
    values = {
        "digest": DIGESTS[number],
        "diff_id": DIGESTS[number + 1],
        "size": 100 + number,
        "uncompressed_size": 1000,
        "media_type": GZIP,
    }
    return Layer(**(values | fields))


def config(platform=Platform.LINUX_AMD64, **fields):
    values = {
        "platform": platform,
        "created": "2024-05-01T10:00:00Z",
        "environment": {"PATH": "/usr/bin", "HOME": "/home/flops"},
        "entrypoint": ("python", "main.py"),
        "working_directory": "/opt/flops/actor",
        "user": "65532:65532",
        "labels": {"io.flops.actor": "learner", "title": "Größe"},
    }
    return ImageConfig(**(values | fields))


LAYERS = (layer(0, comment="base"), layer(1, media_type=ZSTD))


def test_golden_documents():
    image = compose(config(), LAYERS, {"org.opencontainers.image.title": "digits"})
    assert json.loads(image.config) == {
        "architecture": "amd64",
        "os": "linux",
        "created": "2024-05-01T10:00:00Z",
        "config": {
            "Env": ["HOME=/home/flops", "PATH=/usr/bin"],
            "Entrypoint": ["python", "main.py"],
            "WorkingDir": "/opt/flops/actor",
            "User": "65532:65532",
            "Labels": {"io.flops.actor": "learner", "title": "Größe"},
        },
        "rootfs": {"type": "layers", "diff_ids": [DIGESTS[1], DIGESTS[2]]},
        "history": [
            {"created": "2024-05-01T10:00:00Z", "created_by": "flops", "comment": "base"},
            {"created": "2024-05-01T10:00:00Z", "created_by": "flops"},
        ],
    }
    assert json.loads(image.manifest) == {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": image.config_digest, "size": len(image.config)},
        "layers": [
            {"mediaType": GZIP, "digest": DIGESTS[0], "size": 100},
            {"mediaType": ZSTD, "digest": DIGESTS[1], "size": 101},
        ],
        "annotations": {"org.opencontainers.image.title": "digits"},
    }
    assert image.size == 201
    assert image.digest == "sha256:f5c1fa693a57757f97e668226a74a2e562c5b164722d9df87c588449e311cd63"


def test_documents_do_not_depend_on_the_order_of_mappings():
    one = compose(config(environment={"A": "1", "B": "2"}, labels={"x": "1", "y": "2"}), LAYERS, {"p": "1", "q": "2"})
    two = compose(config(environment={"B": "2", "A": "1"}, labels={"y": "2", "x": "1"}), LAYERS, {"q": "2", "p": "1"})
    assert one == two


def test_an_index_is_sorted_by_platform_and_lists_each_layer_once():
    images = [compose(config(platform), LAYERS) for platform in reversed(Platform)]
    whole = index(images, {"a": "b"})
    assert whole == index(images[::-1], {"a": "b"})
    assert json.loads(whole.document) == {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [
            {
                "mediaType": MANIFEST,
                "digest": image.digest,
                "size": len(image.manifest),
                "platform": {"os": "linux", "architecture": architecture},
            }
            for image, architecture in zip(whole.images, ["amd64", "arm64"], strict=True)
        ],
        "annotations": {"a": "b"},
    }
    assert whole.layers == LAYERS
    assert list(whole.documents())[-1] == whole.document
    assert len(list(whole.documents())) == 5
    assert whole.descriptor == Descriptor(media_type=INDEX, digest=whole.digest, size=len(whole.document))
    with pytest.raises(ValueError, match="one image per platform"):
        index([images[0], images[0]])


def test_what_is_composed_can_be_read():
    whole = index([compose(config(), LAYERS, {"x": "y"})])
    read = parse_index(whole.document)
    assert read.find(Platform.LINUX_AMD64) == whole.images[0].descriptor
    assert read.find(Platform.LINUX_ARM64) is None
    manifest = parse_manifest(whole.images[0].manifest)
    assert [entry.digest for entry in manifest.layers] == DIGESTS[:2]
    assert manifest.annotations == {"x": "y"}
    parsed = parse_config(whole.images[0].config)
    assert parsed.platform is Platform.LINUX_AMD64
    assert parsed.environment == {"PATH": "/usr/bin", "HOME": "/home/flops"}
    assert (parsed.entrypoint, parsed.command) == (("python", "main.py"), ())
    assert parsed.diff_ids == tuple(DIGESTS[1:3])
    assert parsed.comments == ("base", "")


def test_dockers_documents_are_read_in_ocis_words():
    entry = {"mediaType": DOCKER_MANIFEST, "digest": DIGESTS[0], "size": 5}
    platforms = [
        {"os": "windows", "architecture": "amd64"},
        {"os": "linux", "architecture": "arm64", "variant": "v8"},
        {"os": "unknown", "architecture": "unknown"},
        {"os": "linux", "architecture": "arm", "variant": "v7"},
    ]
    document = {"mediaType": DOCKER_INDEX, "manifests": [entry | {"platform": platform} for platform in platforms]}
    read = parse_index(json.dumps(document).encode())
    assert [item.platform for item in read.manifests] == [None, Platform.LINUX_ARM64, None, None]
    assert {item.media_type for item in read.manifests} == {MANIFEST}
    manifest = {
        "mediaType": DOCKER_MANIFEST,
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": DIGESTS[0], "size": 1},
        "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": DIGESTS[1], "size": 2}],
    }
    parsed = parse_manifest(json.dumps(manifest).encode())
    assert parsed.config.media_type == CONFIG
    assert parsed.layers[0].media_type == GZIP


def test_a_config_with_nulls_and_empty_layers_is_read():
    document = {
        "architecture": "s390x",
        "os": "linux",
        "config": {"Env": None, "Cmd": None, "Labels": None},
        "rootfs": {"type": "layers", "diff_ids": [DIGESTS[0]]},
        "history": [{"comment": "a"}, {"empty_layer": True, "comment": "no"}],
    }
    parsed = parse_config(json.dumps(document).encode())
    assert (parsed.platform, parsed.environment, parsed.labels, parsed.user) == (None, {}, {}, "")
    assert parsed.comments == ("a",)


ENTRY = {"mediaType": MANIFEST, "digest": DIGESTS[0], "size": 5}


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        {"mediaType": MANIFEST, "manifests": []},
        {"mediaType": 1, "manifests": []},
        {},
        {"manifests": {}},
        {"manifests": [1]},
        {"manifests": [ENTRY | {"size": -1}]},
        {"manifests": [ENTRY | {"size": True}]},
        {"manifests": [ENTRY | {"size": "5"}]},
        {"manifests": [ENTRY | {"digest": "sha256:../../../../etc/passwd"}]},
        {"manifests": [ENTRY | {"digest": DIGESTS[0].upper()}]},
        {"manifests": [ENTRY | {"annotations": []}]},
        {"manifests": [{"mediaType": MANIFEST}]},
    ],
)
def test_what_is_no_index_is_refused(wrong):
    with pytest.raises(BadImage):
        parse_index(wrong if isinstance(wrong, bytes) else json.dumps(wrong).encode())


@pytest.mark.parametrize(
    "wrong",
    [
        {"rootfs": {}},
        {"rootfs": {"diff_ids": []}},
        {"rootfs": {"diff_ids": "x"}},
        {"rootfs": {"diff_ids": [1]}},
        {"rootfs": {"diff_ids": ["sha256:1"]}},
        {"rootfs": {"diff_ids": DIGESTS[:1]}, "config": {"Env": "A=1"}},
        {"rootfs": {"diff_ids": DIGESTS[:1]}, "config": {"Labels": ["a"]}},
        {"rootfs": {"diff_ids": DIGESTS[:1]}, "config": "x"},
        {"rootfs": {"diff_ids": DIGESTS[:1]}, "history": 5},
    ],
)
def test_what_is_no_config_is_refused(wrong):
    with pytest.raises(BadImage):
        parse_config(json.dumps(wrong).encode())
