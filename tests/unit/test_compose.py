"""Configuration, labels and annotations of actor images: what other programs rely on, and nothing of the moment of building."""

import json
from datetime import UTC, datetime

import pytest

from flops.actors import Actor
from flops.base import Base
from flops.images.compose import (
    LOCK,
    RECIPE,
    REVISION,
    SOURCE,
    UNPACKED,
    Identity,
    compose_image,
    index_annotations,
    locked,
)
from flops.oci.image import parse_config, parse_manifest
from flops.oci.layer import GZIP, Layer
from flops.platforms import Platform
from flops.recipe import Flavor, Recipe

AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RECIPE_DIGEST = Recipe().digest


def layer(number, *, comment=""):
    digits = f"{number:064x}"
    return Layer(
        digest=f"sha256:{digits}",
        diff_id=f"sha256:{digits[::-1]}",
        size=100 + number,
        uncompressed_size=1000,
        media_type=GZIP,
        comment=comment,
    )


LAYERS = [layer(1, comment="Debian bookworm: 37 packages"), layer(2, comment="numpy 1.26.4"), layer(3)]


def identity(**changes):
    values = {
        "source": "https://git.example/Acme/Digits",
        "commit": COMMIT,
        "created": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "repository": "acme/digits",
        "flavor": Flavor.SKLEARN,
        "recipe": RECIPE_DIGEST,
    }
    return Identity(**(values | changes))


def image(actor=Actor.LEARNER, platform=AMD64, *, variables=None, lock="sha256:" + "7" * 64, **changes):
    base = Base(
        platform=platform,
        python="3.11.2",
        glibc=(2, 36),
        interpreter="/usr/bin/python3.11",
        layers=(LAYERS[0],),
        lock="sha256:" + "5" * 64,
        environment=variables or {},
    )
    return compose_image(identity(**changes), actor, platform=platform, base=base, lock=lock, layers=LAYERS)


def test_how_a_container_starts():
    config = parse_config(image(Actor.AGGREGATOR).config)
    assert config.entrypoint == ("/opt/flops/runtime/bin/python", "main.py")
    assert config.command == ()
    assert config.working_directory == "/opt/flops/actor"
    assert config.user == "65532:65532"
    assert config.platform is AMD64
    assert config.created == "2026-01-02T03:04:05Z"
    assert config.environment["ML_MODEL_FLAVOR"] == "sklearn"


@pytest.mark.parametrize("actor", Actor)
def test_labels_and_annotations_say_the_same(actor):
    one = image(actor)
    labels = parse_config(one.config).labels
    assert labels == {
        SOURCE: "https://git.example/Acme/Digits",
        REVISION: COMMIT,
        "org.opencontainers.image.created": "2026-01-02T03:04:05Z",
        "org.opencontainers.image.title": f"acme/digits {actor.value}",
        "io.flops.actor": actor.value,
        "io.flops.flavor": "sklearn",
        RECIPE: RECIPE_DIGEST,
        LOCK: "sha256:" + "7" * 64,
        "io.flops.wire": labels["io.flops.wire"],
    }
    assert labels["io.flops.wire"].isdecimal()
    assert parse_manifest(one.manifest).annotations == {**labels, UNPACKED: "3000"}


def test_an_unknown_flavor_is_not_labelled():
    assert "io.flops.flavor" not in parse_config(image(flavor=None).config).labels


def test_history_tells_each_layers_content():
    document = json.loads(image().config)
    assert [entry.get("comment") for entry in document["history"]] == [
        "Debian bookworm: 37 packages",
        "numpy 1.26.4",
        None,
    ]
    assert {entry["created"] for entry in document["history"]} == {"2026-01-02T03:04:05Z"}
    assert document["rootfs"]["diff_ids"] == [one.diff_id for one in LAYERS]


def test_the_same_values_give_the_same_bytes_and_others_do_not():
    assert image() == image()
    digests = {
        one.digest
        for one in (
            image(),
            image(Actor.AGGREGATOR),
            image(platform=ARM64),
            image(lock="sha256:" + "8" * 64),
            image(commit="f" * 40),
            image(variables={"X": "1"}),
        )
    }
    assert len(digests) == 6


def test_no_time_but_the_commits_is_in_an_image():
    text = (image().config + image().manifest).decode()
    assert str(datetime.now(tz=UTC).date()) not in text
    assert text.count("2026-01-02T03:04:05Z") >= 4


def test_an_indexs_lock_does_not_depend_on_the_order_in_which_platforms_came():
    locks = {AMD64: "sha256:" + "1" * 64, ARM64: "sha256:" + "2" * 64}
    one = index_annotations(identity(), Actor.LEARNER, locks)
    other = index_annotations(identity(), Actor.LEARNER, dict(reversed(locks.items())))
    alone = index_annotations(identity(), Actor.LEARNER, {AMD64: locks[AMD64]})
    assert one == other
    assert one[LOCK] != alone[LOCK]
    assert {key: value for key, value in one.items() if key != LOCK} == {
        key: value for key, value in alone.items() if key != LOCK
    }


def test_locked_tells_each_part_apart():
    assert locked(["a", "b"]) != locked(["ab"]) != locked(["b", "a"])
    assert locked(["a"]).startswith("sha256:")
