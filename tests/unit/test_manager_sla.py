"""The SLA: FLOps' own documents, ours, and what people write instead."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flops.errors import BadSetting, CredentialUnknown, SlaInvalid
from flops.oci.reference import Reference
from flops.platforms import Platform
from flops.recipe import Flavor, Policy, Recipe
from flops.service.manager_settings import BaseImages
from flops.service.named_credentials import GIT, REGISTRY, CredentialNames, NamedCredential, NamedCredentials
from flops.service.sla import parse_sla, recipe_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "sla.json"
URL = "https://git.example.com/acme/digits"


def parse(**document):
    return parse_sla({"ml_repo_url": URL, **document}, names=CredentialNames(), bases=BaseImages.parse("*"))


def pointers(document, names=None):
    with pytest.raises((SlaInvalid, CredentialUnknown)) as caught:
        parse_sla(document, names=names or CredentialNames())
    return {finding.path for finding in caught.value.findings}


def test_the_example_is_understood():
    sla = parse_sla(json.loads(EXAMPLE.read_text()), names=CredentialNames())
    assert sla.flavor is Flavor.SKLEARN
    assert sla.platforms == (Platform.LINUX_AMD64, Platform.LINUX_ARM64)
    assert sla.training.training_rounds == 3
    assert sla.resources == {"memory": 1000, "vcpus": 1, "storage": 0}
    assert sla.warnings == ()


def test_defaults_are_flops_own():
    sla = parse(ml_model_flavor="pytorch")
    assert (sla.customer, sla.verbose, sla.platforms) == ("Admin", False, (Platform.LINUX_AMD64,))
    training = sla.training
    assert (training.mode, training.data_tags) == ("classic", ())
    assert {training.training_cycles, training.training_rounds, training.min_fit_clients} == {1}
    assert sla.recipe == Recipe(flavor=Flavor.PYTORCH)


def test_our_own_keys_make_the_recipe():
    sla = parse(
        python="3.11", policy="strict", accelerator="cuda", compression="zstd", base_image="localhost:5000/base:1",
        ml_repo_subdir="/models/./digits/", groups=["Train_Extra", "train-extra", "dev"],
    )  # fmt: skip
    recipe = sla.recipe
    assert (recipe.python, recipe.policy, recipe.subdir) == ("3.11", Policy.STRICT, "models/digits")
    assert recipe.groups == ("dev", "train-extra")
    assert recipe.base == "localhost:5000/base:1"


def test_what_is_written_is_read_as_the_same():
    sla = parse(ml_repo_ref="v1", supported_platforms=["linux/arm64"], verbose=True, post_training_steps=["x"])
    again = parse_sla(json.loads(json.dumps(sla.to_json())), names=CredentialNames())
    assert again == sla
    assert recipe_of(sla.to_json()).digest == sla.recipe.digest


def test_everything_that_is_wrong_is_told_at_once_with_its_place():
    document = {
        "ml_repo_url": 7,
        "ml_model_flavor": "jax",
        "verbose": "yes",
        "supported_platforms": ["linux/amd64", "windows/amd64"],
        "python": "3",
        "policy": "lenient",
        "ml_repo_subdir": "../x",
        "base_image": "user:secret@host/x",
        "groups": "dev",
        "training_configuration": {
            "mode": "fast",
            "training_rounds": 0,
            "data_tags": ["ok", 1],
            "min_fit_clients": True,
        },
        "resource_constraints": [1],
    }
    assert pointers(document) == {
        "/ml_repo_url",
        "/ml_model_flavor",
        "/verbose",
        "/supported_platforms/1",
        "/python",
        "/policy",
        "/ml_repo_subdir",
        "/base_image",
        "/groups",
        "/training_configuration/mode",
        "/training_configuration/training_rounds",
        "/training_configuration/data_tags/1",
        "/training_configuration/min_fit_clients",
        "/resource_constraints",
    }


@pytest.mark.parametrize("document", [None, [], "x", 3, True])
def test_what_is_no_object_is_refused_and_no_key_is_missed_in_it(document):
    assert pointers(document) == {""}


@pytest.mark.parametrize("character", ["\x1b", "\x7f", "\x80", "\x9b"])
def test_control_characters_are_no_text(character):
    document = {"ml_repo_url": "https://git.example.com/a/b", "ml_model_flavor": "sklearn"}
    for key, value in (("ml_repo_subdir", f"a{character}"), ("groups", [f"a{character}"])):
        assert {one.split("/")[1] for one in pointers({**document, key: value})} == {key}


def test_the_url_is_needed():
    assert pointers({"ml_model_flavor": "sklearn"}) == {"/ml_repo_url"}
    assert pointers({"ml_repo_url": ""}) == {"/ml_repo_url"}
    assert pointers({"ml_repo_url": "x" * 2049}) == {"/ml_repo_url"}
    assert pointers({"ml_repo_url": "https://a/\ud800b"}) == {"/ml_repo_url"}


def test_an_empty_list_of_platforms_is_no_wish():
    assert pointers({"ml_repo_url": URL, "supported_platforms": []}) == {"/supported_platforms"}


def test_unknown_and_ignored_keys_are_told_and_accepted():
    sla = parse(
        ml_model_flavour="sklearn",
        use_devel_base_images=True,
        post_training_steps=["build_image_for_trained_model"],
        training_configuration={"mode": "hierarchical", "rounds": 3},
    )
    told = "\n".join(sla.warnings)
    for word in ("/ml_model_flavour", "/use_devel_base_images", "/post_training_steps", "/rounds", "hierarchical"):
        assert word in told
    assert parse(use_devel_base_images=False).warnings == ()


def test_a_misspelt_key_is_told_with_the_known_one():
    (told,) = parse(ml_model_flavour="sklearn").warnings
    assert told == "/ml_model_flavour is unknown and ignored; ml_model_flavor is known"
    (told,) = parse(ml_model_flavor="sklearn", ml_model_flavour="sklearn", supported_platforms=None).warnings
    assert told == "/ml_model_flavour is unknown and ignored"
    (told,) = parse(**{"x" * 200_000: 1}).warnings
    assert len(told) < 200


def test_a_refused_sla_tells_what_would_be_ignored_too():
    with pytest.raises(SlaInvalid) as caught:
        parse_sla({"ml_repo_urll": URL, "policy": 1, "training_configuration": {"x/y": 1}}, names=CredentialNames())
    assert {finding.path for finding in caught.value.findings} == {"/ml_repo_url", "/policy"}
    assert caught.value.hint.splitlines() == [
        "write the repository's URL, https://HOST/OWNER/REPOSITORY",
        "note: /ml_repo_urll is unknown and ignored; ml_repo_url is known",
        "note: /training_configuration/x~1y is unknown and ignored",
    ]
    with pytest.raises(CredentialUnknown) as refused:
        parse_sla({"ml_repo_url": URL, "git_credential": "nobody", "surprise": 1}, names=CredentialNames())
    assert refused.value.hint.endswith("\nnote: /surprise is unknown and ignored")


def test_a_version_is_a_text_of_plain_digits():
    with pytest.raises(SlaInvalid) as caught:
        parse(python=3.11)
    assert '"3.11"' in caught.value.hint
    assert pointers({"ml_repo_url": URL, "python": "3.\u0661\u0661"}) == {"/python"}


def test_many_unknown_keys_are_counted_not_listed():
    sla = parse(**{f"key{number}": 1 for number in range(500)})
    assert len(sla.warnings) < 30
    assert "480" in sla.warnings[-1]


def names(host="git.example.com"):
    one = NamedCredential(name="team", host=host, username="u", password="secret-word")
    return CredentialNames(
        git=NamedCredentials(setting=GIT, by_name={"team": one}),
        registry=NamedCredentials(
            setting=REGISTRY,
            by_name={"push": NamedCredential(name="push", host="registry.test", username="u", password="secret-word")},
        ),
    )


def test_credentials_are_names_that_the_operator_knows_for_this_host():
    document = {"ml_repo_url": URL, "git_credential": "team", "registry_credential": "push"}
    sla = parse_sla(document, names=names(), registry="https://registry.test/flops")
    assert (sla.git_credential, sla.registry_credential) == ("team", "push")
    assert "secret-word" not in json.dumps(sla.to_json())
    with pytest.raises(CredentialUnknown) as caught:
        parse_sla(document, names=names("elsewhere.example.com"), registry="https://other.test")
    assert {finding.path for finding in caught.value.findings} == {"/git_credential", "/registry_credential"}
    assert "secret-word" not in str(caught.value.to_json())
    with pytest.raises(SlaInvalid):
        parse_sla({**document, "policy": 1}, names=CredentialNames(), registry="https://registry.test")


DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("listed", "asked", "allowed"),
    [
        ("", "registry.example.org/python:3.11", False),
        ("*", "http://10.0.0.1/python:3.11", True),
        ("registry.example.org/python:3.11", "registry.example.org/python:3.11", True),
        (" a.example/b:1 , registry.example.org/python", "https://registry.example.org/python:latest", True),
        ("docker.io/python:3.11", "docker.io/library/python:3.11", True),
        ("registry.example.org/python:3.11", "registry.example.org/python:3.11.1", False),
        ("registry.example.org/python:3.11", f"registry.example.org/python:3.11@{DIGEST}", False),
        ("registry.example.org/python:3.11", "http://registry.example.org/python:3.11", False),
        ("registry.example.org/python:3.11", "registry.example.org:8443/python:3.11", False),
        (f"registry.example.org/python@{DIGEST}", f"registry.example.org/python:3.12@{DIGEST}", True),
        ("registry.example.org/bases/", "registry.example.org/bases/python:3.11", True),
        ("registry.example.org/bases/", "registry.example.org/bases-of-others/python:3.11", False),
        ("registry.example.org/", "registry.example.org.evil.example/python:3.11", False),
        ("http://registry.example.org/", "registry.example.org/python:3.11", False),
        ("http://registry.example.org/", "http://registry.example.org/python:3.11", True),
        ("registry.example.org/python:3.*", "registry.example.org/python:3.11", True),
        ("registry.example.org/python:3.*", f"registry.example.org/python:3.11@{DIGEST}", False),
        ("registry.example.org/python*", f"registry.example.org/python@{DIGEST}", True),
        ("localhost:5000/*", "127.0.0.1:5000/python:3.11", False),
    ],
)
def test_a_base_image_is_one_that_the_operator_lists(listed, asked, allowed):
    assert BaseImages.parse(listed).allow(Reference.parse(asked)) is allowed


@pytest.mark.parametrize(
    "listed", ["registry.example.org*", "/", "python", "u:p@registry.example.org/", "ftp://a.example/b*"]
)
def test_a_list_of_base_images_that_can_not_be_meant(listed):
    with pytest.raises(BadSetting, match="FLOPS_BASE_IMAGES"):
        BaseImages.parse(f"a.example/b:1,{listed}")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
known_keys = st.sampled_from(
    [*parse(ml_model_flavor="sklearn").to_json(), "use_devel_base_images", "surprise", "mode", "training_rounds"]
)


@settings(max_examples=300)
@given(st.dictionaries(known_keys, json_values, max_size=8))
def test_any_document_is_either_an_sla_or_refused_with_places(document):
    places: int | None = None
    try:
        sla = parse_sla(document, names=CredentialNames(), registry="http://127.0.0.1:5073")
    except (SlaInvalid, CredentialUnknown) as error:
        json.dumps(error.to_json()).encode()
        places = len(error.findings)
    if places is not None:
        assert places > 0
        return
    assert parse_sla(sla.to_json(), names=CredentialNames()) == sla
    json.dumps(sla.to_json()).encode()


def test_settings_of_the_operator_are_read_as_names():
    parsed = NamedCredentials.parse('{"team": {"host": "h", "username": "u", "password": "p"}}', GIT)
    assert parsed.find("team", "h").password == "p"
    with pytest.raises(BadSetting):
        NamedCredentials.parse("[]", GIT)


def test_a_whole_number_may_be_written_with_a_fraction():
    """JSON has one kind of number, and JSON Schema calls 690.0 an integer."""
    rounds = parse(training_configuration={"training_rounds": 690.0}).to_json()["training_configuration"][
        "training_rounds"
    ]
    assert (rounds, type(rounds)) == (690, int)
    with pytest.raises(SlaInvalid):
        parse(training_configuration={"training_rounds": 690.5})
