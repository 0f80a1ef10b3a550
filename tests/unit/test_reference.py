"""Registries, references, names, tags: what is read, and what is refused."""

import pytest

from flops.errors import BadTarget
from flops.oci.reference import Reference, Registry, check_tag, repository_path

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "host", "prefix", "url"),
    [
        ("127.0.0.1:5073", "127.0.0.1:5073", "", "http://127.0.0.1:5073"),
        ("localhost", "localhost", "", "http://localhost"),
        ("[::1]:5073", "[::1]:5073", "", "http://[::1]:5073"),
        ("https://localhost:5000/", "localhost:5000", "", "https://localhost:5000"),
        ("registry.example/team/ml", "registry.example", "team/ml", "https://registry.example"),
        ("http://registry.example:8080/team/", "registry.example:8080", "team", "http://registry.example:8080"),
        ("registry", "registry", "", "https://registry"),
        ("[2001:db8::1]", "[2001:db8::1]", "", "https://[2001:db8::1]"),
        (" registry.example ", "registry.example", "", "https://registry.example"),
    ],
)
def test_a_registry_is_read(text, host, prefix, url):
    registry = Registry.parse(text)
    assert (registry.host, registry.prefix, registry.url) == (host, prefix, url)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/team",
        "ftp://registry.example",
        "http://",
        "Registry.example",
        "registry.example/Team",
        "registry.example/team/../other",
        "registry.example:0",
        "registry.example:70000",
        "registry.example:" + "9" * 5000,
        "registry.example:",
        "registry.example:port",
        "user:secret@registry.example",
        "registry..example",
        "-registry.example",
        "[::1",
        "[::g]:80",
        "::1",
        "registry.example/" + "a" * 256,
        "registry example",
        "0177.0.0.1:5000",
        "300.1.1.1",
        "127.1",
        "2130706433:5000",
    ],
)
def test_a_bad_registry_is_refused(text):
    with pytest.raises(BadTarget):
        Registry.parse(text)


@pytest.mark.parametrize(
    ("text", "repository", "tag", "digest", "written"),
    [
        ("localhost:5073/base:1", "base", "1", None, "localhost:5073/base:1"),
        ("localhost/base", "base", "latest", None, "localhost/base:latest"),
        ("registry.example/a/b@" + DIGEST, "a/b", None, DIGEST, "registry.example/a/b@" + DIGEST),
        ("http://registry.example/a:T_1@" + DIGEST, "a", "T_1", DIGEST, "registry.example/a:T_1@" + DIGEST),
        ("docker.io/debian:12", "library/debian", "12", None, "docker.io/library/debian:12"),
        ("[::1]:5000/a:1", "a", "1", None, "[::1]:5000/a:1"),
    ],
)
def test_a_reference_is_read(text, repository, tag, digest, written):
    reference = Reference.parse(text)
    assert (reference.repository, reference.tag, reference.digest, str(reference)) == (repository, tag, digest, written)
    assert reference.selector == (digest or tag)


def test_a_references_scheme_is_consent_to_plain_http():
    assert Reference.parse("http://registry.example/a:1").registry.plain_http
    assert not Reference.parse("registry.example/a:1").registry.plain_http
    assert Reference.parse("127.0.0.1:5/a:1").registry.plain_http


@pytest.mark.parametrize(
    "text",
    [
        "debian:12",
        "team/debian",
        "registry.example/",
        "registry.example/A:1",
        "registry.example/a:",
        "registry.example/a:" + "t" * 129,
        "registry.example/a:../b",
        "registry.example/a@sha256:abc",
        "registry.example/a@md5:" + "a" * 32,
        "registry.example/a@" + DIGEST.upper(),
        "registry.example/a/../b:1",
        "registry.example//a",
    ],
)
def test_a_bad_reference_is_refused(text):
    with pytest.raises(BadTarget):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("parts", "path"),
    [
        (("Acme/Digits", "learner"), "acme/digits/learner"),
        (("acme", "a.b__c--d_e", "x"), "acme/a.b__c--d_e/x"),
        (("local/2fa",), "local/2fa"),
    ],
)
def test_a_repository_path_is_lower_cased(parts, path):
    assert repository_path(*parts) == path


@pytest.mark.parametrize(
    "name", ["", "a//b", "a/", "/a", "_a", "a_", "a..b", "a.-b", "a___b", "ä", "a b", "a:b", "a%2fb", "a\n"]
)
def test_a_bad_repository_path_is_refused(name):
    with pytest.raises(BadTarget):
        repository_path(name)


def test_a_registrys_prefix_stands_before_every_name():
    registry = Registry.parse("registry.example/team")
    assert registry.repository("Acme/Digits", "learner") == "team/acme/digits/learner"
    assert str(registry.reference("acme/digits", "learner", tag="v1")) == "registry.example/team/acme/digits/learner:v1"
    assert str(registry) == "registry.example/team"


def test_a_tag_has_up_to_128_characters():
    assert check_tag("t" * 128) == "t" * 128
    for text in ("t" * 129, "", ".a", "-a", "a/b", "a:b", "a b", "a\n", "ä"):
        with pytest.raises(BadTarget):
            check_tag(text)


@pytest.mark.parametrize(
    "text", ["https://u:s3cret@host.example/x/y:z", "u:s3cret@host.example:5000", "u:s3/cret@h.example/x"]
)
@pytest.mark.parametrize("parse", [Registry.parse, Reference.parse])
def test_a_password_is_refused_and_not_shown(parse, text):
    with pytest.raises(BadTarget) as caught:
        parse(text)
    assert "s3" not in caught.value.message + caught.value.hint
