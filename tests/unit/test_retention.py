"""Which images go: random registries, read, planned over and pruned; what stays is whole, what is others' is untouched."""

import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flops.errors import DeletesUnsupported
from flops.oci.artifacts import Content, artifact_document, fallback_tag, referrers_document
from flops.oci.blobs import sha256
from flops.oci.descriptor import CONFIG, MANIFEST, Descriptor, canonical
from flops.oci.image import index_document
from flops.oci.layer import GZIP
from flops.oci.manifests import Manifest
from flops.oci.reference import Registry
from flops.oci.signature import documents, signature_tag
from flops.platforms import Platform
from flops.progress import Silent
from flops.prune.listing import list_images
from flops.prune.removal import remove
from flops.prune.retention import RetentionRule, plan
from flops.records import read_timestamp, timestamp

NOW = datetime(2026, 6, 1, tzinfo=UTC)
LAYERS = [Descriptor(media_type=GZIP, digest=f"sha256:{number:064x}", size=1000 + number) for number in range(1, 7)]


class World:
    """A registry as a model: manifests, tags and referrers of each repository; blobs are taken for granted."""

    def __init__(self, *, lists_referrers=True, prefix=""):
        self.registry = Registry(host="registry.example", prefix=prefix)
        self.manifests = defaultdict(dict)
        self.names = defaultdict(dict)
        self.lists_referrers = lists_referrers
        self.deletes = True

    # --- as a client ---
    def catalog(self):
        return tuple(self.manifests)

    def tags(self, repository):
        return tuple(self.names[repository])

    def get_manifest(self, repository, reference):
        digest = self.names[repository].get(reference, reference)
        document = self.manifests[repository].get(digest)
        return None if document is None else Manifest(media_type="", document=document, digest=digest)

    def referrers(self, repository, digest, artifact_type=None):
        found = []
        for one, document in self.manifests[repository].items():
            value = json.loads(document)
            if self.lists_referrers and value.get("subject", {}).get("digest") == digest:
                found.append(self.descriptor(one, document))
        listed = self.get_manifest(repository, fallback_tag(digest))
        entries = json.loads(listed.document)["manifests"] if listed and not self.lists_referrers else []
        return (*found, *(Descriptor.from_json(entry) for entry in entries))

    def delete_manifest(self, repository, digest, *, subject=None):
        if not self.deletes:
            raise DeletesUnsupported("registry.example deletes no manifests")
        self.names[repository] = {tag: one for tag, one in self.names[repository].items() if one != digest}
        return self.manifests[repository].pop(digest, None) is not None

    # --- made ---
    def put(self, repository, document, *tags):
        digest = sha256(document)
        self.manifests[repository][digest] = document
        self.names[repository] |= dict.fromkeys(tags, digest)
        return self.descriptor(digest, document)

    @staticmethod
    def descriptor(digest, document):
        value = json.loads(document)
        return Descriptor(
            media_type=value.get("mediaType", MANIFEST),
            digest=digest,
            size=len(document),
            annotations=value.get("annotations", {}),
            artifact_type=value.get("artifactType", ""),
        )

    def image(self, repository, platform, layers, salt):
        config = Descriptor(media_type=CONFIG, digest=sha256(f"{platform} {salt}".encode()), size=100)
        value = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
        found = self.put(repository, canonical(value))
        return Descriptor(media_type=MANIFEST, digest=found.digest, size=found.size, platform=platform)

    def build(
        self,
        path,
        number,
        *,
        layers,
        platforms=tuple(Platform),
        recipe="ab",
        salt="",
        day=None,
        actors=("learner", "aggregator"),
        signed=False,
        built=None,
    ):
        """What one build leaves: both actors' indexes, records and signatures."""
        commit = f"{number:040x}"
        created = (NOW - timedelta(days=number if day is None else day)).strftime("%Y-%m-%dT%H:%M:%SZ")
        made = []
        for actor in actors:
            repository = self.registry.repository(path, actor)
            images = [self.image(repository, platform, layers, salt or commit) for platform in platforms]
            annotations = {
                "io.flops.actor": actor,
                "io.flops.recipe": f"sha256:{recipe * 32}",
                "org.opencontainers.image.revision": commit,
                "org.opencontainers.image.created": created,
            }
            document = index_document(images, annotations)
            subject = self.put(repository, document, commit, f"{commit}-{(recipe * 32)[:12]}")
            told = {"io.flops.built": built} if built else {}
            record = artifact_document(
                "application/vnd.flops.build.v1+json", Content(data=b"{}"), subject=subject, annotations=told
            )
            record = self.put(repository, record)
            if not self.lists_referrers:
                self.put(repository, referrers_document([record]), fallback_tag(subject.digest))
            if signed:
                self.put(repository, documents([], subject)[1], signature_tag(subject.digest))
            made.append(subject)
        return made

    def note(self, kind, number, layers, *, days):
        key = f"{number:064x}"
        created = (NOW - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
        document = artifact_document(
            "application/vnd.flops.layer.v1+json",
            Content(data=f"{kind} {key}".encode()),
            blobs=layers,
            annotations={"org.opencontainers.image.created": created},
        )
        return self.put(self.registry.repository("flops/cache"), document, f"{kind}-{key}")

    def prune(self, keep=1, days=0.0):
        pruning = plan(list_images(self), RetentionRule(keep=keep, days=days), NOW)
        return pruning, remove(self, pruning, Silent())

    def commits(self, repository):
        return {int(tag, 16) for tag in self.names[repository] if len(tag) == 40}

    def check(self):
        """Every name stands for a manifest that is there with all that it names; nothing of ours stands nameless."""
        for repository, names in self.names.items():
            there = self.manifests[repository]
            reached = set()
            for digest in names.values():
                assert digest in there
                reached.add(digest)
                for entry in json.loads(there[digest]).get("manifests", ()):
                    assert entry["digest"] in there, f"{repository} lost a part"
                    reached.add(entry["digest"])
            for digest, document in there.items():
                subject = json.loads(document).get("subject", {}).get("digest")
                assert digest in reached or subject in reached, f"{repository} keeps what nothing names"


def test_the_newest_stay_for_both_actors():
    world = World()
    for number in range(5):
        world.build("acme/digits", number, layers=LAYERS[:2], signed=True)
    pruning, removed = world.prune(keep=2)
    for actor in ("learner", "aggregator"):
        assert world.commits(f"acme/digits/{actor}") == {0, 1}
    world.check()
    assert removed.indexes == 6
    assert removed.manifests == 3 * 2 * (2 + 1 + 1)
    assert len(pruning.builds) == 3


def test_the_later_of_two_builds_of_one_second_stays():
    world = World()
    for number in range(4):
        world.build(
            "acme/digits",
            number,
            layers=LAYERS[:1],
            day=3,
            built=timestamp(NOW + timedelta(milliseconds=number - 4000)),
        )
    world.prune(keep=1)
    assert world.commits("acme/digits/learner") == {3}


@given(st.datetimes(timezones=st.timezones() | st.just(UTC)))
def test_a_moment_is_read_as_it_was_written(when):
    try:
        in_utc = when.astimezone(UTC)
    except OverflowError:
        return
    assert read_timestamp(timestamp(when)) == in_utc.replace(microsecond=in_utc.microsecond // 1000 * 1000)


def test_what_is_no_moment_is_unknown():
    assert read_timestamp("2026-01-02T03:04:05Z") == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert read_timestamp("2026-01-02T03:04:05+02:00") == datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)
    for text in ("", "yesterday", "2026-01-02", "2026-01-02T03:04:05", "0001-01-01T00:00:00+14:00"):
        assert read_timestamp(text) is None


def test_young_builds_stay_however_many():
    world = World()
    for number in range(5):
        world.build("acme/digits", number, layers=LAYERS[:2])
    world.prune(keep=1, days=2.5)
    assert world.commits("acme/digits/learner") == {0, 1, 2}


def test_each_path_keeps_its_own():
    world = World()
    world.build("acme/digits", 1, layers=LAYERS[:1])
    world.build("acme/faces", 400, layers=LAYERS[:1])
    pruning, _ = world.prune(keep=1)
    assert not pruning.builds


def test_two_recipes_of_a_commit_are_two_builds():
    world = World()
    world.build("acme/digits", 3, layers=LAYERS[:1], recipe="cd", salt="cd")
    world.build("acme/digits", 4, layers=LAYERS[:2], recipe="ab", day=1)
    pruning, _ = world.prune(keep=1)
    assert [build[2] for build in pruning.builds] == ["sha256:" + "cd" * 32]
    world.check()


def test_a_name_that_somebody_gave_keeps_a_build():
    world = World()
    world.build("acme/digits", 1, layers=LAYERS[:1])
    (learner, _) = world.build("acme/digits", 9, layers=LAYERS[:1])
    world.names["acme/digits/learner"]["production"] = learner.digest
    pruning, _ = world.prune(keep=1)
    assert not pruning.builds


def test_an_image_of_somebody_else_stays():
    world = World()
    for number in (1, 2):
        world.build("acme/digits", number, layers=LAYERS[:1])
    theirs = world.image("acme/digits/learner", Platform.LINUX_AMD64, LAYERS[:1], "theirs")
    world.put("acme/digits/learner", index_document([theirs]), "theirs")
    world.prune(keep=0)
    assert set(world.names["acme/digits/learner"]) == {"theirs"}
    world.check()


def test_a_platform_that_another_image_shares_stays():
    world = World()
    for number in (1, 2):
        world.build("acme/digits", number, layers=LAYERS[:1], salt="same")
    world.prune(keep=1)
    assert world.commits("acme/digits/learner") == {1}
    world.check()


def test_records_of_layers_follow_images():
    world = World()
    world.build("acme/digits", 1, layers=LAYERS[:2])
    world.build("acme/digits", 50, layers=LAYERS[1:3])
    for number, layer in enumerate(LAYERS[:4]):
        world.note("layer", number, [layer], days=40)
    world.note("layer", 9, [LAYERS[4]], days=1)
    world.note("lock", 10, [], days=5)
    world.note("lock", 11, [], days=40)
    world.put("flops/cache", index_document([]), "somebody-elses")
    pruning, removed = world.prune(keep=1, days=30)
    assert {one.tag[-2:] for one in pruning.shared} == {"02", "03", "0b"}
    assert removed.shared == 3
    assert "somebody-elses" in world.names["flops/cache"]
    # the old build's third layer and the record's fourth; the second one is in the new build too
    documents = 2 * (3 * 1000 + 2 * 100)
    assert LAYERS[2].size + LAYERS[3].size < pruning.freed < LAYERS[2].size + LAYERS[3].size + documents


def test_locks_that_builders_still_take_stay():
    world = World()
    world.note("lock", 1, [], days=6)
    pruning, _ = world.prune(keep=0, days=0)
    assert not pruning.shared


def test_what_was_pushed_meanwhile_is_left_alone():
    world = World()
    for number in (1, 2):
        world.build("acme/digits", number, layers=LAYERS[:1])
    pruning = plan(list_images(world), RetentionRule(keep=1, days=0), NOW)
    world.build("acme/digits", 2, layers=LAYERS[:3], actors=("learner",), salt="again")
    remove(world, pruning, Silent())
    assert world.commits("acme/digits/learner") == {1, 2}
    for digest in world.names["acme/digits/learner"].values():
        for entry in json.loads(world.manifests["acme/digits/learner"][digest])["manifests"]:
            assert entry["digest"] in world.manifests["acme/digits/learner"]


def test_a_registry_that_deletes_nothing_loses_nothing():
    world = World()
    for number in (1, 2):
        world.build("acme/digits", number, layers=LAYERS[:1])
    world.deletes = False
    with pytest.raises(DeletesUnsupported):
        world.prune(keep=1)
    assert world.commits("acme/digits/learner") == {1, 2}


def test_only_what_lies_below_the_prefix_is_looked_at():
    world = World(prefix="team")
    world.build("acme/digits", 1, layers=LAYERS[:1])
    other = World()
    other.build("acme/digits", 1, layers=LAYERS[:1])
    world.manifests |= other.manifests
    world.names |= other.names
    assert {one.repository for one in list_images(world).indexes} == {
        "team/acme/digits/learner",
        "team/acme/digits/aggregator",
    }


BUILDS = st.lists(
    st.fixed_dictionaries(
        {
            "path": st.sampled_from(["acme/digits", "acme/faces"]),
            "number": st.integers(1, 6),
            "layers": st.lists(st.sampled_from(LAYERS), min_size=1, max_size=4, unique_by=lambda one: one.digest),
            "platforms": st.sampled_from([tuple(Platform), (Platform.LINUX_AMD64,), (Platform.LINUX_ARM64,)]),
            "recipe": st.sampled_from(["ab", "cd"]),
            "salt": st.sampled_from(["", "same"]),
            "day": st.integers(0, 60),
            "signed": st.booleans(),
        }
    ),
    max_size=8,
    unique_by=lambda one: (one["path"], one["number"], one["recipe"]),
)


@settings(deadline=None, max_examples=100)
@given(
    builds=BUILDS,
    notes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=5, unique_by=lambda one: one[0]),
    lists=st.booleans(),
    keep=st.integers(0, 4),
    days=st.integers(0, 50),
    named=st.sets(st.integers(0, 7)),
    foreign=st.sets(st.integers(0, 7)),
)
def test_random_registries(builds, notes, lists, keep, days, named, foreign):
    world = World(lists_referrers=lists)
    made = [world.build(**build) for build in builds]
    for number, (layer, age) in enumerate(notes):
        world.note("layer", number, [LAYERS[layer]], days=age)
    protected = set()
    for number, (build, (learner, _)) in enumerate(zip(builds, made, strict=True)):
        repository = f"{build['path']}/learner"
        if number in named:
            world.names[repository]["prod" + str(number)] = learner.digest
            protected.add(learner.digest)
        if number in foreign:
            child = json.loads(world.manifests[repository][learner.digest])["manifests"][0]
            world.put(repository, index_document([Descriptor.from_json(child)]), f"theirs{number}")
    before = {repository: dict(names) for repository, names in world.names.items()}
    pruning, _ = world.prune(keep=keep, days=days)
    world.check()
    gone = {(path, commit, recipe) for path, commit, recipe in pruning.builds}
    for build, subjects in zip(builds, made, strict=True):
        key = (build["path"], f"{build['number']:040x}", "sha256:" + build["recipe"] * 32)
        for actor, subject in zip(("learner", "aggregator"), subjects, strict=True):
            assert (subject.digest in world.manifests[f"{build['path']}/{actor}"]) == (key not in gone)
        if key in gone:
            assert build["day"] > days
            assert not {one.digest for one in subjects} & protected
    for repository, names in before.items():
        theirs = {tag for tag in names if tag.startswith(("theirs", "prod"))}
        assert theirs <= world.names[repository].keys()
    kept = list_images(world).indexes
    needed = {layer.digest for one in kept for image in one.images for layer in image.layers}
    assert not {layer.digest for one in pruning.shared for layer in one.layers} & needed
    again, _ = world.prune(keep=keep, days=days)
    assert not again.builds
