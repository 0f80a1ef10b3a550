"""Where an ML repository comes from: a Git URL (https, ssh, scp form) or a directory, parsed and judged before git sees it.

Two levels of trust. The command line (`trusted`) may name any host and directory. A job from the service may not: https and
ssh URLs only, no addresses inside the operator's network but those that the operator lists, and directories where the
operator allows them. Names that resolve to private addresses and redirects are the network's answers and are judged
where the connection is made (`route`), not here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from flops.addresses import check_host, literal
from flops.errors import BadUrl, CredentialInUrl

if TYPE_CHECKING:
    from collections.abc import Collection

#: Characters of a URL; git hosts allow far fewer.
URL_LIMIT = 2048
SCHEMES = ("https", "ssh")
SCP_FORM = re.compile(r"(?:(?P<user>[A-Za-z0-9_.-]+)@)?(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(?P<path>[^:]+)")
HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?\.?|[0-9A-Fa-f:.]+")
PAGE = re.compile(r"(?P<repository>.+?)(?:/-)?/(?:tree|blob|src)/(?P<rest>.+)")
FORMS = "write https://HOST/OWNER/REPOSITORY, ssh://git@HOST/OWNER/REPOSITORY, git@HOST:OWNER/REPOSITORY or a directory"
#: What a project may name.
URLS = "write https://HOST/OWNER/REPOSITORY or ssh://git@HOST/OWNER/REPOSITORY"


class SourceKind(Enum):
    URL = "url"
    DIRECTORY = "directory"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A place that was judged fit to read from."""

    text: str
    """As it was written; holds no credential."""
    kind: SourceKind
    trusted: bool = True
    """Chosen by somebody whose own credentials, hosts and directories these are."""
    directory: Path | None = None
    """Absolute; for kind DIRECTORY only."""

    @property
    def url(self) -> str:
        """What git is given, and what images carry as their source."""
        return self.text.rstrip("/")

    @property
    def repository(self) -> str:
        """The image path that the URL or the directory's name stands for, lower-cased and valid."""
        if self.directory is not None:
            return image_path("local", self.directory.name)
        return url_image_path(self.url)


def parse_source(
    text: str, *, trusted: bool = True, allow_hosts: Collection[str] = (), allow_local: bool = False
) -> Source:
    """Read SOURCE as the command line (or, untrusted, a job) gives it; no network.

    BadUrl, CredentialInUrl; BlockedAddress for an untrusted source with a private address as its host that is not in
    `allow_hosts`. With `allow_local` an untrusted source may be the absolute path of a directory.
    """
    forms = FORMS if trusted else URLS
    _check_characters(text, forms)
    if "://" in text:
        _check_url(text, trusted=trusted, allow_hosts=allow_hosts)
        return Source(text=text, kind=SourceKind.URL, trusted=trusted)
    if re.match(r"[A-Za-z0-9+.-]+::", text):
        raise BadUrl("remote helpers (NAME::ADDRESS) are not supported as a source", hint=forms)
    if not trusted:
        if text.startswith("/"):
            return _directory(text, allowed=allow_local)
        raise BadUrl("the source of a project is neither an https nor an ssh URL", hint=URLS)
    scp = SCP_FORM.fullmatch(text)
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - leaves the name of a user that is none; pathlib fails
    if path.is_dir():
        return Source(text=text, kind=SourceKind.DIRECTORY, directory=path.resolve())
    if "@" in (scp["path"] if scp else text).partition("/")[0]:
        raise CredentialInUrl("the source looks like USER:PASSWORD@HOST", hint=FORMS)
    if scp is not None and not scp["path"].startswith("-"):
        return Source(text=text, kind=SourceKind.URL)
    raise BadUrl(f"{text!r} is neither a Git URL nor a directory", hint=_missing_hint(text))


def _directory(text: str, *, allowed: bool) -> Source:
    """A directory that a project names; its owner is not the operator, so its git repository is not trusted either."""
    if not allowed:
        raise BadUrl(
            "directories are not taken as a project's source here",
            hint="write https://HOST/OWNER/REPOSITORY; FLOPS_ALLOW_LOCAL=1 lets a manager take its machine's directories",
        )
    path = Path(text)
    if not path.is_dir():
        raise BadUrl(f"there is no directory {text!r} on the builder's machine", hint="check the spelling")
    return Source(text=text, kind=SourceKind.DIRECTORY, trusted=False, directory=path.resolve())


def without_credentials(url: str) -> str | None:
    """A remote's URL as it may be shown and recorded, or None where it is none of ours (a path, another scheme)."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "https" and "@" in parts.netloc:
            url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        elif parts.scheme == "ssh" and parts.password is not None:
            url = parts._replace(netloc=f"{parts.username}@{parts.netloc.rpartition('@')[2]}").geturl()
        _check_characters(url)
        if "://" in url:
            _check_url(url)
        elif SCP_FORM.fullmatch(url) is None:
            return None
    except (BadUrl, CredentialInUrl, ValueError):
        return None
    return url.rstrip("/")


def url_image_path(url: str, subdir: str = "") -> str:
    """The image path of a judged URL: owner and name (and what lies between, on hosts with groups), then the subdirectory.

    `local/` is for directories alone, so an owner of that name is `remote/local/`.
    """
    scp = SCP_FORM.fullmatch(url) if "://" not in url else None
    path = (scp["path"] if scp else unquote(urlsplit(url).path)).strip("/").removesuffix(".git")
    name = image_path(path, subdir)
    return f"remote/{name}" if name.split("/")[0] == "local" else name


def image_path(*parts: str) -> str:
    """Join names into a repository path by the grammar of the OCI distribution specification, lower-cased.

    What the grammar does not know becomes a hyphen; empty parts are left out.
    """
    names = [name for part in parts for name in part.split("/")]
    return "/".join(filter(None, map(_image_name, names))) or "repository"


def _image_name(name: str) -> str:
    kept = re.sub(r"[^a-z0-9._-]", "-", name.lower()).strip("._-")
    return re.sub(r"[._-]+", lambda run: run[0] if re.fullmatch(r"\.|_|__|-+", run[0]) else "-", kept)


def _check_characters(text: str, forms: str = FORMS) -> None:
    if not text or len(text) > URL_LIMIT:
        raise BadUrl(f"a source has 1 to {URL_LIMIT} characters, this one {len(text)}", hint=forms)
    if text.startswith("-"):
        raise BadUrl("a source can't begin with a hyphen", hint=forms)
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise BadUrl("the source holds control characters", hint=forms)


def _check_url(text: str, *, trusted: bool = True, allow_hosts: Collection[str] = ()) -> None:
    forms = FORMS if trusted else URLS
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise BadUrl("the source is not a valid URL", hint=forms) from None
    if parts.scheme not in SCHEMES:
        known = re.fullmatch(r"[a-z][a-z0-9+.-]*", parts.scheme)
        name = f"{parts.scheme}://" if known else "this form"
        raise BadUrl(f"{name} is not supported as a source", hint=_scheme_hint(parts, forms))
    if parts.password is not None or (parts.scheme == "https" and "@" in parts.netloc):
        raise CredentialInUrl(
            f"the URL of {host} holds a user name or password, which would end up in logs and images",
            hint="write the URL without it, and let git's credential helper or an ssh key answer"
            if trusted
            else "write the URL without it, and name one of the operator's credentials: git_credential",
        )
    if not HOST.fullmatch(host) or (parts.username or "").startswith("-"):
        raise BadUrl("the URL names no valid host", hint=forms)
    if re.search(r"%[01][0-9a-f]|%7f|\s", text, re.IGNORECASE) or parts.query or parts.fragment:
        raise BadUrl("the URL holds characters that no repository's has", hint=forms)
    names = unquote(parts.path).strip("/").split("/")
    if not all(names) or not {".", ".."}.isdisjoint(names) or names[0].startswith("-"):
        raise BadUrl(f"the URL's path names no repository of {host}", hint=forms)
    if (page := PAGE.fullmatch(parts.path)) is not None and parts.scheme == "https":
        raise BadUrl(
            "this is the address of a page, not of a repository",
            hint=f"use https://{parts.netloc}{page['repository']} with "
            f"{'--ref and --subdir' if trusted else 'ml_repo_ref and ml_repo_subdir'} for {page['rest']!r}",
        )
    if not trusted:
        check_host(host, allow_hosts)
        if host.endswith(".") or ((address := literal(host)) is not None and str(address) != host):
            raise BadUrl(
                f"{host!r} is no usual spelling of a host",
                hint="write its name without a final dot, or its address in the usual short form",
            )


def _scheme_hint(parts: SplitResult, forms: str) -> str:
    if parts.scheme == "file":
        return "write the directory itself, without file://"
    return f"use https://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.scheme in ("http", "git") else forms


def _missing_hint(text: str) -> str:
    first = text.partition("/")[0]
    looks_like_host = "." in first.strip(".") and "/" in text
    return f"write https://{text}" if looks_like_host else f"check the spelling; {FORMS}"
