"""`flops images`, and what builds leave beside their images: whole builds (outer parts replaced) into an embedded registry."""

import io
import json
import subprocess
import tomllib
from functools import partial

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from tests.unit import test_build as samples

from flops.actors import Actor
from flops.cli.main import main
from flops.errors import BadKey, UsageError
from flops.oci.blobs import sha256
from flops.oci.client import RegistryClient
from flops.oci.image import INDEX, parse_index, parse_manifest
from flops.oci.layout import Layout
from flops.oci.signature import signature_tag
from flops.prune.removal import remove_superseded
from flops.publishing.local_targets import ArchiveTarget, LayoutTarget
from flops.publishing.registry_target import RegistryTarget
from flops.records import BUILD, LOCKS, PROVENANCE, SBOM
from flops.registry.app import EmbeddedRegistry
from flops.registry.storage import RegistryStore
from flops.use_cases.build import build

AMD64, ARM64 = samples.AMD64, samples.ARM64
world, settings, repository = samples.world, samples.settings, samples.repository
KINDS = {LOCKS, SBOM, PROVENANCE, BUILD}


@pytest.fixture
def registry(tmp_path):
    with EmbeddedRegistry(tmp_path / "registry") as server:
        yield server


@pytest.fixture
def made(world, settings, repository, registry):
    """Builds into the registry: one, and for each call after it another commit's."""

    def make(*platforms, more=None, told=None, transport=None, **request):
        if more:
            (repository / more).write_text(more)
            samples.commit(repository)
        with RegistryClient(registry.registry, transport=transport) as client:
            wanted = samples.request(repository, *platforms, **request)
            return build(wanted, RegistryTarget(client), settings=settings, reporter=told)

    return make


def keys(directory, name):
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = directory / f"{name}.pem", directory / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def flops(capsys, *words):
    code = main([*map(str, words)])
    told = capsys.readouterr()
    return code, told.out, told.err


def shown(capsys, *words):
    code, out, err = flops(capsys, "images", *words, "--json")
    assert code == 0, err
    return json.loads(out)


def references(registry, result):
    return [image.reference for image in result.images.values()]


def test_a_build_leaves_its_records_beside_both_indexes(made, registry, capsys):
    result = made()
    subjects = set()
    for image in result.images.values():
        found = shown(capsys, "show", image.reference)
        assert found["digest"] == image.digest
        assert found["records"].keys() == KINDS
        assert [len(found["records"][kind]) for kind in (LOCKS, SBOM, PROVENANCE, BUILD)] == [6, 2, 1, 1]
        (statement,) = shown(capsys, "show", image.reference, "--provenance").values()
        named = {one["digest"]["sha256"] for one in statement["subject"]}
        subjects.add(frozenset(named))
        assert image.digest.removeprefix("sha256:") in named
        assert {one.digest.removeprefix("sha256:") for one in image.platforms.values()} <= named
        assert statement["predicate"]["buildDefinition"]["externalParameters"]["revision"] == result.commit
    assert len(subjects) == 1  # one statement for both actors


def test_records_are_what_they_are_called(made, capsys, world):
    (learner, _) = references(None, made())
    code, out, _ = flops(capsys, "images", "show", learner, "--sbom", "--platform", "linux/arm64")
    assert code == 0
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(out) is None
    assert {one["name"] for one in json.loads(out)["components"]} >= {"flwr", "numpy", "thing"}
    locks = shown(capsys, "show", learner, "--locks")
    for name, text in locks.items():
        if name.endswith(".toml"):
            assert tomllib.loads(text)["lock-version"] == "1.0"
    names = {one["name"] for one in tomllib.loads(locks["pylock.ml-linux-amd64.toml"])["packages"]}
    assert names == {wheel.name for wheel in world.locks[AMD64].wheels}


def test_a_wheels_licence_is_in_the_sbom(made, capsys, world, settings):
    metadata = b"Metadata-Version: 2.4\nName: free\nVersion: 1.0\nLicense-Expression: MIT OR Apache-2.0\n"
    wheels = [world.wheel("numpy"), world.wheel("free", {"free-1.0.dist-info/METADATA": metadata})]
    world.locks = {platform: world.lock(platform, wheels) for platform in world.locks}
    result = made(AMD64)
    (learner, _) = references(None, result)
    _, out, _ = flops(capsys, "images", "show", learner, "--sbom")
    licences = {one["name"]: one.get("licenses") for one in json.loads(out)["components"]}
    assert licences["free"] == [{"expression": "MIT OR Apache-2.0"}]
    assert licences["numpy"] == [{"license": {"name": "NOASSERTION"}}]


def test_an_index_that_gains_a_platform_keeps_what_is_known_of_the_other(made, capsys):
    made(AMD64)
    result = made(ARM64)
    for reference in references(None, result):
        found = shown(capsys, "show", reference)
        assert found["platforms"].keys() == {"linux/amd64", "linux/arm64"}
        titles = {kind: {one["title"] for one in of} for kind, of in found["records"].items()}
        assert titles[SBOM] == {"sbom-linux-amd64.cdx.json", "sbom-linux-arm64.cdx.json"}
        assert titles[PROVENANCE] == {"provenance-linux-amd64.json", "provenance-linux-arm64.json"}
        assert len(titles[LOCKS]) == 6


class Picky(httpx.HTTPTransport):
    """A registry that takes images and nothing else."""

    def handle_request(self, request):
        if request.method == "PUT" and b"artifactType" in request.read():
            body = {"errors": [{"code": "MANIFEST_INVALID", "message": "images only"}]}
            return httpx.Response(400, json=body, request=request)
        return super().handle_request(request)


def test_a_registry_that_takes_no_records_gets_the_images(made, capsys, tmp_path):
    told = samples.Told()
    result = made(transport=Picky(), told=told)
    (warning,) = [message for _, message in told.warnings if "are not kept" in message]
    assert "images only" in warning
    assert not shown(capsys, "show", references(None, result)[0])["records"]
    private, _ = keys(tmp_path, "key")
    with pytest.raises(
        Exception, match="images only"
    ):  # a signature that was asked for is no record that may be missing
        made(transport=Picky(), more="more", sign=private)


def test_signatures(made, capsys, tmp_path, registry):
    private, public = keys(tmp_path, "ours")
    _, other = keys(tmp_path, "theirs")
    result = made(AMD64, sign=private)
    for reference in references(None, result):
        assert flops(capsys, "images", "verify", reference, "--key", public)[0] == 0
        code, _, err = flops(capsys, "images", "verify", reference, "--key", other)
        assert (code, "NOT_SIGNED" in err) == (8, True)
        assert shown(capsys, "show", reference)["signed"]


def test_what_stands_unsigned_is_signed_when_it_is_asked_for(made, capsys, tmp_path, registry):
    private, public = keys(tmp_path, "ours")
    result = made(AMD64)
    (learner, _) = references(None, result)
    code, _, err = flops(capsys, "images", "verify", learner, "--key", public)
    assert (code, "has no signatures" in err) == (8, True)
    again = made(AMD64, sign=private)
    assert again.python is None  # nothing was built
    assert flops(capsys, "images", "verify", learner, "--key", public)[0] == 0
    tampered = learner.replace("learner", "aggregator")
    with RegistryClient(registry.registry) as client:
        name = "local/digits/learner"
        theirs = client.get_manifest(name, signature_tag(result.images[Actor.LEARNER].digest))
        aggregator = result.images[Actor.AGGREGATOR].digest
        for blob in (parse_manifest(theirs.document).config, *parse_manifest(theirs.document).layers):
            parts = []
            client.fetch_blob(name, blob.digest, parts.extend)
            data = b"".join(parts)
            client.push_blob("local/digits/aggregator", blob.digest, len(data), partial(io.BytesIO, data))
        client.put_manifest("local/digits/aggregator", signature_tag(aggregator), theirs.media_type, theirs.document)
    assert flops(capsys, "images", "verify", tampered, "--key", public)[0] == 8


def test_a_key_is_read_before_any_work(made, settings, repository, world, tmp_path):
    with pytest.raises(BadKey):
        made(AMD64, sign=tmp_path / "none.pem")
    assert not world.started
    private, _ = keys(tmp_path, "ours")
    with pytest.raises(UsageError, match="signatures are kept in a registry"):
        build(samples.request(repository, AMD64, sign=private), LayoutTarget(tmp_path / "images"), settings=settings)
    assert not world.started
    ours = settings.model_copy(update={"sign_key": private})
    build(samples.request(repository, AMD64), LayoutTarget(tmp_path / "images"), settings=ours)


def test_layouts_hold_records_too(world, settings, repository, tmp_path, capsys):
    place = tmp_path / "images"
    first = build(samples.request(repository), LayoutTarget(place), settings=settings)
    (learner, _) = references(None, first)
    assert shown(capsys, "show", learner, "--directory", place)["records"].keys() == KINDS
    (repository / "more").write_text("more")
    samples.commit(repository)
    second = build(samples.request(repository), LayoutTarget(place), settings=settings)
    for reference in (learner, references(None, second)[0]):
        assert shown(capsys, "show", reference, "--directory", place)["records"].keys() == KINDS
    listed = shown(capsys, "list", "--directory", place)
    assert {one["commit"] for one in listed["builds"]} == {first.commit, second.commit}
    for image in second.images.values():
        for referrer in Layout(place).referrers(image.digest):
            for blob in parse_manifest(Layout(place).blobs.read(referrer.digest)).layers:
                assert Layout(place).blobs.size(blob.digest) == blob.size


def test_a_layouts_index_that_gains_a_platform_keeps_what_is_known_of_the_other(
    world, settings, repository, tmp_path, capsys
):
    place = tmp_path / "images"
    for platform in (AMD64, ARM64):
        result = build(samples.request(repository, platform), LayoutTarget(place), settings=settings)
    for reference in references(None, result):
        records = shown(capsys, "show", reference, "--directory", place)["records"]
        assert len(records[LOCKS]) == 6
        assert {one["title"] for one in records[SBOM]} == {"sbom-linux-amd64.cdx.json", "sbom-linux-arm64.cdx.json"}
        sboms = shown(capsys, "show", reference, "--directory", place, "--sbom")
        assert len(sboms) == 2


def test_an_archive_holds_the_records_that_have_no_time(world, settings, repository, tmp_path):
    archives = []
    for name in ("one.tar", "two.tar"):
        build(samples.request(repository), ArchiveTarget(tmp_path / name), settings=settings)
        archives.append((tmp_path / name).read_bytes())
    assert archives[0] == archives[1]
    subprocess.run(["tar", "-xf", "one.tar"], cwd=tmp_path, check=True, timeout=60)
    kinds = [one.artifact_type for one in parse_index((tmp_path / "index.json").read_bytes()).manifests]
    assert sorted(filter(None, kinds)) == [SBOM, SBOM, LOCKS, LOCKS]


def test_a_list_tells_builds_and_what_they_share(made, registry, capsys):
    first, second = made(), made(more="more")
    listed = shown(capsys, "list", "--registry", registry.registry)
    assert [one["commit"] for one in listed["builds"]] == [first.commit, second.commit]
    for one in listed["builds"]:
        assert one["repository"] == "local/digits"
        assert {image["actor"] for image in one["images"]} == {"learner", "aggregator"}
        assert 0 < one["shared_bytes"] < one["bytes"]
    assert listed["bytes"] < sum(one["bytes"] for one in listed["builds"])
    assert listed["shared"]["layer"]
    code, out, _ = flops(capsys, "images", "list", "--registry", registry.registry)
    assert code == 0
    assert "4 images" in out
    named = shown(capsys, "list", "--registry", registry.registry, "local/digits/learner")
    assert {image["actor"] for one in named["builds"] for image in one["images"]} == {"learner"}
    assert shown(capsys, "list", "--registry", registry.registry, "local/digits")["builds"] == listed["builds"]
    for words in (("list",), ("prune", "--keep", "0")):
        code, out, err = flops(capsys, "images", *words, "--registry", registry.registry, "local/digit")
        assert (code, out) == (7, "")
        assert "IMAGE_NOT_FOUND" in err
        assert "the name local/digit\n" in err


def test_a_narrow_terminal_gets_a_narrow_list_and_a_pipe_whole_lines(made, registry, capsys, monkeypatch):
    commit = made().commit
    _, out, _ = flops(capsys, "images", "list", "--registry", registry.registry)
    (line,) = [line for line in out.splitlines() if commit[:12] in line]
    assert "aggregator, learner" in line
    assert "linux/amd64, linux/arm64" in line
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = flops(capsys, "images", "list", "--registry", registry.registry)
    (line,) = [line for line in out.splitlines() if commit[:12] in line]
    assert "local/digits" in line
    assert " MB" in line


def test_pruning_an_embedded_registrys_directory(made, registry, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("flops.cli.images_prune.GRACE", -1.0)
    private, public = keys(tmp_path, "ours")
    results = [made(more=f"file{number}", sign=private) for number in range(3)]
    before = sum(path.stat().st_size for path in (registry.root / "blobs").rglob("*") if path.is_file())
    told = shown(capsys, "prune", "--keep", "1", "--older", "0", "--directory", registry.root, "--dry-run")
    assert [one["commit"] for one in told["builds"]] == sorted(one.commit for one in results[:2])
    assert len(shown(capsys, "list", "--directory", registry.root)["builds"]) == 3
    done = shown(capsys, "prune", "--keep", "1", "--older", "0", "--directory", registry.root)
    assert done["removed"]["indexes"] == 4
    assert done["collected"] > 0
    after = sum(path.stat().st_size for path in (registry.root / "blobs").rglob("*") if path.is_file())
    assert before - after == done["collected"]
    (kept,) = shown(capsys, "list", "--directory", registry.root)["builds"]
    assert kept["commit"] == results[2].commit
    assert not RegistryStore(registry.root).referrers("local/digits/learner", results[0].images[Actor.LEARNER].digest)
    with RegistryClient(registry.registry) as client:
        for image in results[2].images.values():
            name, _, tag = image.reference.partition("/")[2].rpartition(":")
            for entry in parse_index(client.get_manifest(name, tag).document).manifests:
                manifest = parse_manifest(client.get_manifest(name, entry.digest).document)
                assert all(client.has_blob(name, blob.digest) for blob in (manifest.config, *manifest.layers))
            assert len(client.referrers(name, image.digest)) == len(KINDS) + 1
            assert flops(capsys, "images", "verify", image.reference, "--key", public)[0] == 0


def test_a_dry_run_foretells_that_nothing_can_be_deleted(made, registry, capsys):
    for number in range(2):
        made(more=f"file{number}")
    words = ("images", "prune", "--older", "0", "--dry-run", "--json", "--registry")
    code, out, _ = flops(capsys, *words, registry.registry, "--keep", "1")
    assert (code, len(json.loads(out)["builds"])) == (0, 1)
    with EmbeddedRegistry(registry.root, read_only=True) as frozen:
        code, out, _ = flops(capsys, *words, frozen.registry, "--keep", "1")
        assert (code, json.loads(out)["error"]["code"]) == (7, "REGISTRY_DELETES")
        assert flops(capsys, *words, frozen.registry, "--keep", "2")[0] == 0  # there is nothing to delete
    assert len(shown(capsys, "list", "--directory", registry.root)["builds"]) == 2


def test_pruning_the_layout_in_the_data_directory(world, settings, repository, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("flops.cli.images_prune.GRACE", -1.0)
    monkeypatch.setenv("FLOPS_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("FLOPS_REGISTRY", raising=False)
    place = tmp_path / "images"
    results = []
    for number in range(3):
        (repository / f"file{number}").write_text(str(number))
        samples.commit(repository)
        results.append(build(samples.request(repository), LayoutTarget(place), settings=settings))
    before = list((place / "blobs").rglob("*"))
    told = shown(capsys, "prune", "--keep", "1", "--older", "0", "--dry-run")
    assert [one["commit"] for one in told["builds"]] == sorted(one.commit for one in results[:2])
    assert list((place / "blobs").rglob("*")) == before
    done = shown(capsys, "prune", "--keep", "1", "--older", "0")
    assert done["builds"] == told["builds"]
    assert done["removed"]["indexes"] == 4
    assert done["collected"] > 0
    assert len(list((place / "blobs").rglob("*"))) < len(before)
    (kept,) = shown(capsys, "list")["builds"]
    assert kept["commit"] == results[2].commit
    for actor, image in results[2].images.items():
        target = LayoutTarget(place)
        assert target.existing("local/digits", actor, results[2].commit).digest == image.digest, "whole, or it is None"
        assert shown(capsys, "show", image.reference)["records"].keys() == KINDS
    code, out, _ = flops(capsys, "images", "prune", "--keep", "1", "--older", "0")
    assert (code, "0 builds" in out) == (0, True)


def test_an_index_that_grew_leaves_with_its_records_what_it_grew_into_stays(made, registry, capsys):
    old = made(AMD64)
    new = made(ARM64)
    store, name = RegistryStore(registry.root), "local/digits/learner"
    before, after = (one.images[Actor.LEARNER].digest for one in (old, new))
    assert store.media_type(name, before)
    assert remove_superseded(store, 3600) == 0  # just pushed
    assert remove_superseded(store, -1) == 2 * (1 + len(KINDS))
    assert store.media_type(name, before) is None
    assert store.referrers(name, before) == []
    assert len(store.referrers(name, after)) == len(KINDS)
    for entry in parse_index(store.read_manifest(after)).manifests:
        assert store.media_type(name, entry.digest)
    assert remove_superseded(store, -1) == 0


def test_a_registry_that_deletes_nothing_is_told(made, registry, capsys, tmp_path):
    made(AMD64)
    made(AMD64, more="more")
    with EmbeddedRegistry(registry.root, read_only=True) as server:
        words = ("images", "prune", "--keep", "1", "--older", "0", "--registry", server.registry)
        code, out, err = flops(capsys, *words, "--json")
        assert code == 7
        assert json.loads(out)["error"]["code"] == "REGISTRY_DELETES"
        assert "see that its operator allows deletes" in err
    assert len(shown(capsys, "list", "--directory", registry.root)["builds"]) == 2


def test_what_others_put_into_a_registry_ends_no_command(made, registry, capsys):
    """An index of indexes under our annotations, and a manifest of an unknown type with our fields."""
    result = made(AMD64)
    name = "local/digits/learner"
    own = RegistryStore(registry.root).read_manifest(result.images[Actor.LEARNER].digest)
    inner = {"mediaType": INDEX, "digest": sha256(own), "size": len(own)}
    outer = {**json.loads(own), "manifests": [inner]}
    odd = {"schemaVersion": 2, "manifests": 5, "artifactType": ["x"], "layers": 7, "annotations": 3}
    for tag, document, kind in (("nested", outer, INDEX), ("odd", odd, "application/x")):
        body = json.dumps(document).encode()
        for reference in (tag, sha256(body + b" ")):
            data = body if reference == tag else body + b" "  # the second one is nameless
            url = f"{registry.registry.url}/v2/{name}/manifests/{reference}"
            answer = httpx.put(url, content=data, headers={"Content-Type": kind})
            assert answer.status_code == 201, answer.text
    listed = shown(capsys, "list", "--directory", registry.root)
    assert ([one["commit"] for one in listed["builds"]], listed["foreign"]) == ([result.commit], 2)
    for age in ("0", "1e12", "inf"):
        words = ("prune", "--keep", "0", "--older", age, "--directory", registry.root)
        assert shown(capsys, *words)["images"] == 0  # the learner's index is a part of somebody's
    assert remove_superseded(RegistryStore(registry.root), -1) == 1  # the nameless one with our annotations
    assert shown(capsys, "show", references(registry, result)[0])["platforms"]
    code, _, err = flops(capsys, "images", "show", f"{registry.registry.host}/{name}:odd")
    assert (code, f"{name}:odd is no image over platforms" in err) == (7, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("base",), "no registry is named"),
        (("prune", "--directory", "/"), "neither an OCI layout nor"),
        (("list", "--directory", "/"), "neither an OCI layout nor"),
        (("list", "--directory", "/", "--registry", "localhost:1"), "exclude each other"),
        (("list", "ACME/digits"), "can't be part of an image name"),
        (("list", "../../x"), "can't be part of an image name"),
        (("prune", "acme/digits:v1", "--registry", "localhost:1"), "can't be part of an image name"),
        (("show", "local/digits"), "names no tag"),
        (("show", "ACME/digits:v1"), "can't be part of an image name"),
        (("show", "localhost:1/a:1", "--sbom", "--locks"), "exclude each other"),
        (("base", "--python", "3.8"), "no base has Python 3.8"),
    ],
)
def test_words_that_say_nothing_that_can_be_done(capsys, tmp_path, monkeypatch, words, told):
    monkeypatch.setenv("FLOPS_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("FLOPS_REGISTRY", raising=False)
    code, _, err = flops(capsys, "images", *words)
    assert code == 2
    assert told in err
