"""Signatures of images: payloads, keys, and what a registry keeps of them."""

import base64
import json
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from flops.errors import BadKey, ImageNotFound
from flops.oci.client import RegistryClient
from flops.oci.descriptor import INDEX, Descriptor
from flops.oci.image import index_document, parse_manifest
from flops.oci.signature import (
    PAYLOAD,
    SIGNATURE,
    PublicKey,
    Signed,
    SigningKey,
    payload_of,
    sign_image,
    signature_tag,
    signed_by,
)
from flops.registry.app import EmbeddedRegistry

DIGEST = "sha256:" + "a1" * 32
NAME = "registry.example/acme/digits/learner"


def write_key(path, *, password=None, curve=None, shape=serialization.PrivateFormat.PKCS8):
    key = ec.generate_private_key(curve or ec.SECP256R1())
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, shape, encryption))
    public = path.with_suffix(".pub")
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return path, public


@pytest.fixture
def keys(tmp_path):
    return write_key(tmp_path / "key.pem")


def test_the_payload_is_cosigns():
    assert json.loads(payload_of(NAME, DIGEST)) == {
        "critical": {
            "identity": {"docker-reference": NAME},
            "image": {"docker-manifest-digest": DIGEST},
            "type": "cosign container image signature",
        },
        "optional": None,
    }


def test_openssl_accepts_a_signature(keys, tmp_path):
    signed = SigningKey.read(keys[0], None).sign(NAME, DIGEST)
    (tmp_path / "payload").write_bytes(signed.payload)
    (tmp_path / "signature").write_bytes(base64.b64decode(signed.signature))
    words = ["openssl", "dgst", "-sha256", "-verify", keys[1], "-signature", "signature", "payload"]
    done = subprocess.run(words, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "Verified OK", done.stderr


def test_a_signature_holds_for_its_key_and_digest_alone(keys, tmp_path):
    key, public = SigningKey.read(keys[0], None), PublicKey.read(keys[1])
    signed = key.sign(NAME, DIGEST)
    assert public.signed(signed, DIGEST)
    assert not public.signed(signed, "sha256:" + "b2" * 32)
    other = PublicKey.read(write_key(tmp_path / "other.pem")[1])
    assert not other.signed(signed, DIGEST)


@given(data=st.data())
def test_whatever_is_changed_does_not_verify(data):
    key = SigningKey(ec.derive_private_key(7, ec.SECP256R1()))
    signed = key.sign(NAME, DIGEST)
    payload = bytearray(signed.payload)
    position = data.draw(st.integers(0, len(payload) - 1))
    payload[position] ^= data.draw(st.integers(1, 255))
    assert not key.public.signed(Signed(payload=bytes(payload), signature=signed.signature), DIGEST)
    text = data.draw(st.text(max_size=80))
    assert not key.public.signed(Signed(payload=signed.payload, signature=text), DIGEST)


def test_an_encrypted_key_needs_its_password(tmp_path):
    path, public = write_key(tmp_path / "key.pem", password=b"secret")
    assert PublicKey.read(public).signed(SigningKey.read(path, "secret").sign(NAME, DIGEST), DIGEST)
    with pytest.raises(BadKey, match="is encrypted") as told:
        SigningKey.read(path, None)
    assert "FLOPS_SIGN_PASSWORD" in told.value.hint
    with pytest.raises(BadKey, match="with this password"):
        SigningKey.read(path, "wrong")
    plain, _ = write_key(tmp_path / "plain.pem")
    with pytest.raises(BadKey, match="is not encrypted"):
        SigningKey.read(plain, "secret")


def test_a_sec1_key_is_read_too(tmp_path):
    path, public = write_key(tmp_path / "key.pem", shape=serialization.PrivateFormat.TraditionalOpenSSL)
    assert PublicKey.read(public).signed(SigningKey.read(path, None).sign(NAME, DIGEST), DIGEST)


def test_keys_that_are_none(tmp_path):
    missing, broken, cosign, empty = (tmp_path / name for name in ("missing.pem", "broken.pem", "cosign.key", "empty"))
    empty.touch()
    broken.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    cosign.write_text("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n")
    p384, p384_public = write_key(tmp_path / "p384.pem", curve=ec.SECP384R1())
    edwards = tmp_path / "edwards.pem"
    edwards.write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    for path, told in (
        (missing, "can't be read: No such file"),
        (broken, "can't be read as a private key"),
        (cosign, "cosign's own encrypted format"),
        (p384, "no key for ECDSA P-256"),
        (edwards, "no key for ECDSA P-256"),
    ):
        with pytest.raises(BadKey, match=told):
            SigningKey.read(path, None)
    with pytest.raises(BadKey, match="is a private key"):
        PublicKey.read(write_key(tmp_path / "key.pem")[0])
    with pytest.raises(BadKey, match="no key for ECDSA P-256"):
        PublicKey.read(p384_public)
    with pytest.raises(BadKey, match="can't be read as a public key"):
        PublicKey.read(empty)


def test_signatures_of_two_keys_lie_beside_each_other(keys, tmp_path):
    other = write_key(tmp_path / "other.pem")
    document = index_document([])
    with EmbeddedRegistry(tmp_path / "registry") as server, RegistryClient(server.registry) as client:
        digest = client.put_manifest("acme/digits/learner", "1", INDEX, document)
        subject = Descriptor(media_type=INDEX, digest=digest, size=len(document))
        with pytest.raises(ImageNotFound, match="has no signatures"):
            signed_by(client, "acme/digits/learner", digest, PublicKey.read(keys[1]))
        sign_image(client, "acme/digits/learner", subject, SigningKey.read(keys[0], None))
        assert signed_by(client, "acme/digits/learner", digest, PublicKey.read(keys[1]))
        assert not signed_by(client, "acme/digits/learner", digest, PublicKey.read(other[1]))
        for key in (other[0], other[0], keys[0]):
            sign_image(client, "acme/digits/learner", subject, SigningKey.read(key, None))
        assert signed_by(client, "acme/digits/learner", digest, PublicKey.read(keys[1]))
        assert signed_by(client, "acme/digits/learner", digest, PublicKey.read(other[1]))
        found = client.get_manifest("acme/digits/learner", signature_tag(digest))
        layers = parse_manifest(found.document).layers
        assert [layer.media_type for layer in layers] == [PAYLOAD, PAYLOAD]
        assert len({layer.annotations[SIGNATURE] for layer in layers}) == 2
        assert found.digest in {one.digest for one in client.referrers("acme/digits/learner", digest)}
