"""Which files of a repository are likely secrets, by name or by how they begin. Nothing is parsed, and nothing of them is kept.

Private keys are known in any file that begins with one. Of the files that tools keep credentials in, the content decides: a
configuration without a password, a reference to a variable (`${NPM_TOKEN}`), a placeholder, a public key or a certificate is
none. Where a file lies says nothing: a key below `tests/` gets into the images like any other.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

#: Enough to tell a key (or a Git LFS pointer) by.
HEAD = 1024
#: Of files that tools keep credentials in.
CREDENTIALS = 64 * 1024

#: Files that are nothing but secrets.
_NAMES = re.compile(
    r"\.env(?!\.(example|sample|template|dist)$)(\.[^/]*)?|id_(rsa|dsa|ecdsa|ed25519)(_sk)?"
    r"|\.git-credentials|\.htpasswd|kaggle\.json|[^/]*\.(p12|pfx|jks|keystore|ppk)"
)
_PRIVATE_KEY = rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----"
_BEGINS_WITH_KEY = re.compile(rb"(\xef\xbb\xbf)?\s*" + _PRIVATE_KEY)
#: What stands where a value would: a reference, a pattern to fill in, a word that says so.
_PLACEHOLDER = rb"(?![$<{%*\[]|(your|change|example|dummy|x{3}|\.\.\.)|[^\s\"',;]{0,200}EXAMPLE)"
_VALUE = rb"[\"']?(?i:" + _PLACEHOLDER + rb")[^\s\"',;#]"


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """One kind of file: the paths that it is looked for in, and what its beginning holds, all of it."""

    paths: re.Pattern[str]
    content: tuple[re.Pattern[bytes], ...]


def _kind(paths: str, *content: bytes) -> _Kind:
    return _Kind(
        paths=re.compile(rf"(.*/)?({paths})", re.IGNORECASE | re.DOTALL),
        content=tuple(re.compile(one, re.MULTILINE) for one in content),
    )


def _ini(*names: bytes) -> bytes:
    """A line that gives one of these names a value."""
    return rb"^[ \t]*(" + rb"|".join(names) + rb")[ \t]*[=:][ \t]*" + _VALUE


def _json(name: bytes, value: bytes) -> bytes:
    return rb'"(' + name + rb')"\s*:\s*"' + value


_KINDS = (
    # keys behind a certificate or what openssl says of them
    _kind(r"[^/]*\.(pem|key|crt|cer|p8|ovpn)", rb"^" + _PRIVATE_KEY),
    # service accounts of Google Cloud, and whatever else holds a key in JSON; a real one has a line of base64 at least
    _kind(r"[^/]*\.json", _json(rb"private_?key", rb"(\\[rn])*" + _PRIVATE_KEY + rb"(\\[rn])*[A-Za-z0-9+/=]{40}")),
    # clients of OAuth, users of gcloud, service principals of Azure
    _kind(r"[^/]*\.json", _json(rb"client_?secret|clientSecret", rb"(?=[^\"]*\d)[A-Za-z0-9_~.+/=-]{16,}\"")),
    _kind(r"[^/]*\.json", _json(rb"SecretAccessKey|aws_secret_access_key", rb"(?![^\"]*EXAMPLE)[A-Za-z0-9/+]{40}\"")),
    _kind(r"[^/]*\.csv", rb"^AKIA[0-9A-Z]{16},(?![^\s]*EXAMPLE)[A-Za-z0-9/+]{40}\s*$"),
    # registries: docker, podman, and the token of Terraform
    _kind(
        r"config\.json|auth\.json|\.dockercfg|\.dockerconfigjson",
        rb'"auths"\s*:\s*\{',
        _json(rb"auth|identitytoken", rb"[A-Za-z0-9+/=_.-]{8,}\""),
    ),
    _kind(r"credentials\.tfrc\.json", _json(rb"token", _VALUE)),
    # what the AWS command line keeps, and what reads the same form: DVC, rclone, s3cmd, boto
    _kind(
        r"(\.aws|\.dvc)/[^/]*|credentials|rclone\.conf|\.s3cfg|\.boto",
        _ini(rb"aws_secret_access_key", rb"aws_session_token", rb"secret_access_key", rb"secret_key", rb"password")
        + rb"|"
        + _ini(rb"pass", rb"account_key", rb"connection_string", rb"gs_secret_access_key"),
    ),
    _kind(r"[._]netrc", rb"(^|\s)password\s+" + _VALUE),
    _kind(r"\.pypirc", _ini(rb"password")),
    _kind(r"\.npmrc", rb"(^|:)(_authToken|_auth|_password)[ \t]*=[ \t]*" + _VALUE),
    _kind(r"\.yarnrc\.ya?ml", rb"^[ \t]*npm(AuthToken|AuthIdent)[ \t]*:[ \t]*" + _VALUE),
    # kubeconfig, by any name that it has
    _kind(
        r"[^/]*\.ya?ml|[^/]*kubeconfig[^/]*|\.kube/[^/]*|[^/]*\.conf",
        rb"^kind:\s*[\"']?Config\b",
        rb"^users:",
        rb"^[ \t-]*(client-key-data|token|password):[ \t]*" + _VALUE,
    ),
    _kind(r"\.streamlit/secrets\.toml", rb"=[ \t]*" + _VALUE),
    # Hugging Face's, where its library keeps it
    _kind(r"token|\.huggingface/[^/]*", rb"\Ahf_[A-Za-z0-9]{30,}\s*\Z"),
)


def reads(path: str) -> int:
    """How many bytes of a file `is_likely` looks at."""
    return CREDENTIALS if any(kind.paths.fullmatch(path) for kind in _KINDS) else HEAD


def is_likely(path: str, head: bytes) -> bool:
    """Whether a file is likely a secret, by its path and its first `reads` bytes."""
    if _NAMES.fullmatch(posixpath.basename(path)) or _BEGINS_WITH_KEY.match(head):
        return True
    return any(kind.paths.fullmatch(path) and all(one.search(head) for one in kind.content) for kind in _KINDS)
