"""Records beside an image: locks, SBOM, provenance, history; and how they get into registries."""

import hashlib
import itertools
import json
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given
from hypothesis import strategies as st
from packaging.licenses import canonicalize_license_expression

from flops.base import Base, BasePackage
from flops.errors import Adjustment, Finding
from flops.images.compose import Identity
from flops.locking.pylock import Lock, LockedWheel, LockTarget, parse
from flops.oci.artifacts import EMPTY, parse_artifact
from flops.oci.client import RegistryClient
from flops.oci.descriptor import INDEX, Descriptor
from flops.oci.image import index_document
from flops.platforms import Platform
from flops.progress import Silent, Stage
from flops.recipe import Flavor, Recipe
from flops.records import LOCKS, PLATFORMS, PROVENANCE, SBOM, TITLE, Materials
from flops.records.attach import attach, record_documents
from flops.records.history import MOST_EVENTS, History, build_record
from flops.records.locks import locks_record, pylock
from flops.records.provenance import Run, provenance_record
from flops.records.sbom import sbom, sbom_record
from flops.registry.app import EmbeddedRegistry
from flops.repair.pythons import PythonChoice
from flops.store.document_store import DocumentStore
from flops.wheels.archive import licence

AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64
COMMIT = "c0ffee" + "0" * 34
THEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def wheel(name, version="1.0", tag="py3-none-any", size=1000):
    stem = name.replace("-", "_")
    return LockedWheel(
        name=name,
        version=version,
        filename=f"{stem}-{version}-{tag}.whl",
        url=f"https://files.example/{stem}-{version}-{tag}.whl",
        sha256=f"{hash_of(name, version, tag):064x}",
        size=size,
    )


def hash_of(*words):
    return int.from_bytes(json.dumps(words).encode()[-31:])


def lock(platform, *wheels):
    return Lock(platform=platform, python="3.11.2", wheels=tuple(sorted(wheels, key=lambda one: one.name)))


def machine_tag(platform):
    return f"cp311-cp311-manylinux_2_28_{platform.machine}"


def base(platform):
    package = BasePackage(
        name="libc6", version="2.36-9+deb12u9", architecture=platform.architecture, size=1, sha256="ab" * 32
    )
    return Base(
        platform=platform,
        python="3.11.2",
        glibc=(2, 36),
        interpreter="/usr/bin/python3.11",
        layers=(),
        lock="sha256:" + "cd" * 32,
        packages=(package,),
    )


def materials(*platforms, **changes):
    numpy = {platform: wheel("numpy", "1.26.4", machine_tag(platform)) for platform in platforms}
    fields = {
        "identity": Identity(
            source="https://git.example/acme/digits",
            commit=COMMIT,
            created=THEN,
            repository="acme/digits",
            flavor=Flavor.SKLEARN,
            recipe="sha256:" + "ef" * 32,
        ),
        "recipe": Recipe(),
        "python": PythonChoice(version="3.11.2", minor="3.11", glibc=(2, 36), provider="debian", suite="bookworm"),
        "bases": {platform: base(platform) for platform in platforms},
        "runtime": {platform: lock(platform, wheel("flwr"), wheel("protobuf", "5.0")) for platform in platforms},
        "ml": {platform: lock(platform, numpy[platform], wheel("protobuf", "3.20.3")) for platform in platforms},
        "licences": {wheel("flwr").sha256: "Apache-2.0", wheel("protobuf", "5.0").sha256: "Some licence of its own"},
    }
    return Materials(**{**fields, **changes})


def run(seconds=0):
    return Run(identity="0197b0c0-0000-7000-8000-000000000001", begun=THEN, ended=THEN.replace(second=5 + seconds))


# --- locks ---
def test_a_lock_is_read_back_as_it_was():
    for platform in Platform:
        given_lock = materials(AMD64, ARM64).ml[platform]
        found = parse(pylock(given_lock).encode(), LockTarget(platform=platform, python="3.11.2", glibc=(2, 36)))
        assert found == given_lock


def test_a_lock_is_the_text_that_pep_751_names():
    text = pylock(lock(AMD64, wheel("numpy", "1.26.4", machine_tag(AMD64))))
    document = tomllib.loads(text)
    assert document["lock-version"] == "1.0"
    assert document["created-by"] == "flops"
    assert document["environments"] == ["sys_platform == 'linux' and platform_machine == 'x86_64'"]
    assert document["requires-python"] == "==3.11.*"
    (package,) = document["packages"]
    assert package["name"] == "numpy"
    assert package["wheels"][0]["hashes"].keys() == {"sha256"}


def test_an_empty_lock_is_one_too():
    assert tomllib.loads(pylock(lock(AMD64)))["packages"] == []


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_address_stands_in_a_lock_as_text(path):
    one = LockedWheel(name="a", version="1", filename="a-1-py3-none-any.whl", url=path, sha256="0" * 64, size=None)
    document = tomllib.loads(pylock(lock(AMD64, one)))
    assert document["packages"][0]["wheels"][0]["url"] == path


def test_pip_reads_what_is_kept(tmp_path):
    path = tmp_path / "pylock.ml-linux-amd64.toml"
    path.write_text(pylock(materials(AMD64).ml[AMD64]))
    program = "import sys; from packaging.pylock import Pylock; import tomllib; Pylock.from_dict(tomllib.load(open(sys.argv[1], 'rb')))"
    done = subprocess.run(
        [sys.executable, "-c", program, path], check=False, capture_output=True, text=True, timeout=60
    )
    if "No module named" in done.stderr:
        pytest.skip("packaging has no reader of locks yet")
    assert done.returncode == 0, done.stderr


def test_each_environment_and_base_is_a_document():
    record = locks_record(materials(AMD64, ARM64))
    assert [part.title for part in record.parts] == [
        f"{name}-linux-{machine}.{kind}"
        for machine in ("amd64", "arm64")
        for name, kind in (("pylock.ml", "toml"), ("pylock.runtime", "toml"), ("base", "json"))
    ]
    assert json.loads(record.parts[2].data)["packages"][0]["name"] == "libc6"


# --- SBOM ---
def sboms(path):
    return DocumentStore(path, kind="sbom", lifetime=None)


def test_an_sbom_is_valid_and_names_everything(tmp_path):
    made = materials(AMD64, ARM64)
    for part in sbom_record(made, sboms(tmp_path)).parts:
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(part.data.decode()) is None
        document = json.loads(part.data)
        found = {component["bom-ref"]: component for component in document["components"]}
        assert found.keys() == {
            "base/libc6@2.36-9+deb12u9",
            "ml/numpy@1.26.4",
            "ml/protobuf@3.20.3",
            "runtime/flwr@1.0",
            "runtime/protobuf@5.0",
        }
        for component in found.values():
            assert component["hashes"][0]["alg"] == "SHA-256"
            assert component["purl"].startswith(("pkg:pypi/", "pkg:deb/debian/"))
        assert found["runtime/flwr@1.0"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
        assert found["runtime/protobuf@5.0"]["licenses"] == [{"license": {"name": "Some licence of its own"}}]
        assert found["ml/numpy@1.26.4"]["licenses"] == [{"license": {"name": "NOASSERTION"}}]


def test_an_sbom_depends_on_what_was_resolved_alone():
    made = materials(AMD64)
    other = materials(AMD64, identity=Identity(**{**vars(made.identity), "commit": "1" * 40}))
    assert sbom(made, AMD64) == sbom(other, AMD64)
    fewer = materials(AMD64, ml={AMD64: lock(AMD64)})
    assert json.loads(sbom(made, AMD64))["serialNumber"] != json.loads(sbom(fewer, AMD64))["serialNumber"]


def test_a_base_image_is_one_component():
    bases = {AMD64: Base(**{**vars(base(AMD64)), "packages": ()})}
    made = materials(AMD64, bases=bases, recipe=Recipe(base="registry.example/python:3.11"))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom(made, AMD64).decode()) is None
    found = {one["bom-ref"]: one for one in json.loads(sbom(made, AMD64))["components"]}
    assert found["base/image"]["name"] == "registry.example/python:3.11"
    assert found["base/image"]["hashes"][0]["content"] == "cd" * 32


def test_an_sbom_is_kept_by_what_it_names(tmp_path, monkeypatch):
    made = materials(AMD64, ARM64)
    first = sbom_record(made, sboms(tmp_path))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    with monkeypatch.context() as patch:
        patch.setattr("flops.records.sbom.sbom", None)
        assert sbom_record(made, sboms(tmp_path)) == first
    files[0].write_bytes(files[0].read_bytes().replace(b"numpy", b"nunpy"))
    assert sbom_record(made, sboms(tmp_path)) == first
    licences = {**made.licences, wheel("protobuf", "3.20.3").sha256: "BSD-3-Clause"}
    assert sbom_record(materials(AMD64, ARM64, licences=licences), sboms(tmp_path)) != first
    (tmp_path / "none").write_bytes(b"")
    assert sbom_record(made, sboms(tmp_path / "none")) == first


# --- licences ---
@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("License-Expression: MIT OR Apache-2.0\nLicense: ignored\n\nText", "MIT OR Apache-2.0"),
        ("License: BSD-3-Clause\n", "BSD-3-Clause"),
        ("License: Copyright (c) 2020\n        Permission is hereby granted\n", ""),
        ("License: UNKNOWN\nClassifier: License :: OSI Approved :: Apache Software License\n", "Apache-2.0"),
        ("License: BSD 3-Clause\nClassifier: License :: OSI Approved :: BSD License\n", "BSD 3-Clause"),
        ("Classifier: License :: OSI Approved :: BSD License\nClassifier: License :: OSI Approved\n", "BSD License"),
        ("Name: a\n\nLicense: MIT\n", ""),
        ("License: \x1b[31mred\n", ""),
        ("", ""),
    ],
)
def test_what_a_wheel_says_of_its_licence(metadata, expected):
    assert licence(metadata.encode()) == expected


@given(st.binary())
def test_any_metadata_give_a_short_printable_licence(metadata):
    found = licence(b"License-Expression: " + metadata)
    assert len(found) <= 100
    assert not any(ord(character) < 32 for character in found)


# --- provenance ---
def test_a_statement_says_from_what_and_how():
    subjects = {"registry.example/acme/digits/learner": "sha256:" + "12" * 32}
    made = materials(AMD64, ARM64)
    locks = locks_record(made)
    (part,) = provenance_record(made, run(7), subjects, locks=locks).parts
    statement = json.loads(part.data)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert statement["subject"] == [{"name": "registry.example/acme/digits/learner", "digest": {"sha256": "12" * 32}}]
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["recipe"] == {
        "flavor": None,
        "python": None,
        "policy": "fix",
        "accelerator": "cpu",
        "compression": "gzip",
        "base": None,
        "subdir": "",
        "groups": [],
    }
    first, *others = definition["resolvedDependencies"]
    assert first == {"uri": f"git+https://git.example/acme/digits@{COMMIT}", "digest": {"gitCommit": COMMIT}}
    assert {one["name"]: one["digest"]["sha256"] for one in others} == {
        part.title: hashlib.sha256(part.data).hexdigest() for part in locks.parts
    }
    assert len(part.data) < 8000  # it travels with every change of code
    details = statement["predicate"]["runDetails"]
    assert details["metadata"]["startedOn"] == "2026-01-02T03:04:05.000Z"
    assert details["metadata"]["finishedOn"] == "2026-01-02T03:04:12.000Z"


def test_a_changed_directory_has_no_digest_of_a_commit():
    made = materials(AMD64)
    identity = Identity(**{**vars(made.identity), "source": "local/digits", "commit": f"{COMMIT}-dirty-abc"})
    changed = materials(AMD64, identity=identity)
    (part,) = provenance_record(changed, run(), {}, locks=locks_record(changed)).parts
    first = json.loads(part.data)["predicate"]["buildDefinition"]["resolvedDependencies"][0]
    assert first == {"uri": f"local/digits@{COMMIT}-dirty-abc"}


# --- history ---
class Loud(Silent):
    def __init__(self):
        self.told = []

    @contextmanager
    def stage(self, stage, message):
        self.told.append(("stage", stage, message))
        yield

    def warning(self, stage, message, *, hint=""):
        self.told.append(("warning", stage, message, hint))


def test_history_passes_on_and_notes():
    loud = Loud()
    history = History(loud)
    with history.stage(Stage.RESOLVE, "locks"):
        history.warning(Stage.RESOLVE, "old", hint="renew")
    history.finding(Finding(path="a.py", line=3, code="X", message="odd"))
    history.adjusted(
        Adjustment(
            code="PIN_RELAXED", package="a", before="==1", after="==2", path="conda.yaml", line=3, reason="no wheel"
        )
    )
    assert loud.told == [("stage", Stage.RESOLVE, "locks"), ("warning", Stage.RESOLVE, "old", "renew")]
    events = history.events()
    assert [event["kind"] for event in events] == ["started", "warning", "finished", "finding", "adjusted"]
    assert events[3]["data"]["path"] == "a.py"
    assert all(one["at"] <= other["at"] for one, other in itertools.pairwise(events))


def test_a_failed_stage_is_not_noted_as_finished():
    history = History(Silent())
    with pytest.raises(RuntimeError), history.stage(Stage.FETCH, "wheels"):
        raise RuntimeError
    assert [event["kind"] for event in history.events()] == ["started"]


def test_a_history_is_bounded():
    history = History(Silent())
    for _ in range(MOST_EVENTS + 7):
        history.warning(Stage.CHECK, "x" * 100_000)
    events = history.events()
    assert len(events) == MOST_EVENTS + 1
    assert events[-1]["message"] == "7 more are not kept"
    assert max(len(event["message"]) for event in events) == 2000


def test_a_build_record_holds_what_was_measured():
    history = History(Silent())
    history.warning(Stage.PUSH, "slow")
    record = build_record(
        history, run(), [AMD64], seconds={"total": 1.5}, moved={"uploaded": 3}, adjustments=[], findings=[]
    )
    document = json.loads(record.parts[0].data)
    assert document["seconds"] == {"total": 1.5}
    assert document["events"][0]["message"] == "slow"


# --- registries ---
def titles(client, repository, digest, kind):
    (referrer,) = client.referrers(repository, digest, kind)
    blobs = parse_artifact(client.get_manifest(repository, referrer.digest).document).blobs
    return {blob.annotations[TITLE]: blob for blob in blobs}


def test_records_are_referrers_and_go_on_with_other_platforms(tmp_path):
    with EmbeddedRegistry(tmp_path / "registry") as server, RegistryClient(server.registry) as client:
        subjects = []
        for number, platform in enumerate((AMD64, ARM64)):
            document = index_document([], {"number": str(number)})
            client.put_manifest("acme/learner", "1", INDEX, document)
            subject = Descriptor(
                media_type=INDEX, digest=client.get_manifest("acme/learner", "1").digest, size=len(document)
            )
            before = record_documents(client, "acme/learner", subjects[-1].digest, [AMD64]) if subjects else {}
            for record in (
                locks_record(materials(platform)),
                sbom_record(materials(platform), sboms(tmp_path / "bills")),
            ):
                attach(
                    client,
                    "acme/learner",
                    subject,
                    record,
                    created="2026-01-02T03:04:05Z",
                    earlier=before.get(record.artifact_type, ()),
                )
            subjects.append(subject)
        assert len(client.referrers("acme/learner", subjects[1].digest)) == 2
        found = titles(client, "acme/learner", subjects[1].digest, SBOM)
        assert {name: blob.annotations[PLATFORMS] for name, blob in found.items()} == {
            "sbom-linux-amd64.cdx.json": "linux/amd64",
            "sbom-linux-arm64.cdx.json": "linux/arm64",
        }
        assert len(titles(client, "acme/learner", subjects[1].digest, LOCKS)) == 6
        assert not client.referrers("acme/learner", subjects[1].digest, PROVENANCE)


def test_documents_that_the_registry_has_are_not_uploaded_again(tmp_path):
    record = sbom_record(materials(AMD64), sboms(tmp_path / "bills"))
    size = len(record.parts[0].data)
    uploaded = []
    with EmbeddedRegistry(tmp_path / "registry") as server:
        for number in range(2):
            with RegistryClient(server.registry) as client:  # one for each build
                for repository in ("acme/learner", "acme/aggregator"):
                    document = index_document([], {"number": str(number)})
                    digest = client.put_manifest(repository, "1", INDEX, document)
                    subject = Descriptor(media_type=INDEX, digest=digest, size=len(document))
                    made = attach(client, repository, subject, record, created="2026-01-02T03:04:05Z")
                    uploaded.append(made.uploaded)
    assert uploaded == [size + len(EMPTY), 0, 0, 0]


def test_licences_of_spdx_are_written_as_such():
    for text in ("MIT OR Apache-2.0", "BSD-3-Clause", "LGPL-3.0-only WITH LGPL-3.0-linking-exception"):
        made = materials(AMD64, licences={wheel("flwr").sha256: text})
        assert canonicalize_license_expression(text) == text
        found = {one["bom-ref"]: one for one in json.loads(sbom(made, AMD64))["components"]}
        assert found["runtime/flwr@1.0"]["licenses"] in ([{"expression": text}], [{"license": {"id": text}}])
