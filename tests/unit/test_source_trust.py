"""What a project of the service may clone from: no private address in any spelling or behind any name, and one credential for one host."""

import base64
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flops import programs
from flops.addresses import allows, is_public, literal
from flops.errors import BadUrl, BlockedAddress, CloneFailed, CredentialInUrl, FlopsError
from flops.repository.checkout import checkout, resolve_commit
from flops.repository.git import Git, GitCredential
from flops.repository.route import find_route
from flops.repository.source import Source, SourceKind, parse_source

PRIVATE = [
    "127.0.0.1", "127.0.0.2", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0x7f.0.0.1", "017700000001", "0177.0.0.1",
    "127.000.000.001", "0", "0.0.0.0", "10.0.0.1", "10.1", "167772161", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.257",
    "3232235521", "169.254.169.254", "2852039166", "0xa9fea9fe", "100.64.0.1", "192.0.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:10.0.0.1]",
    "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b::10.0.0.1]", "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2002:a00:1::1]",
    "[2001:0:7f00:1::]", "[fc00::1]", "[fd12:3456::1]", "[fe80::1]", "[fec0::1]", "[ff02::1]", "[2001:db8::1]", "localhost", "LOCALHOST",
    "localhost.", "a.localhost", "db.internal", "printer.local", "router.home.arpa",
]  # fmt: skip
UNSPELLABLE = [
    "[fe80::1%25eth0]", "127。0。0。1", "①27.0.0.1", "127.0.0.1%00", "%31%32%37.0.0.1", "\uff4cocalhost", "127.0.0.1:x", "", ".", "-host",
    "8.8.8.8.", "134744072", "0x08.8.8.8", "git.example.org.", "[2606:4700:0:0:0:0:0:1111]",
]  # fmt: skip
GIVEN = GitCredential(host="git.example.org", username="robot", password="s3cret")
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\n"


@pytest.fixture
def resolver(monkeypatch):
    """Answers out of a table, one after the other; whoever connects or starts a program fails the test."""
    answers, asked = {}, []

    def getaddrinfo(host, port, *_, **__):
        asked.append(host)
        found = answers.get(host)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        now = found.pop(0) if len(found) > 1 else found[0]
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in now
        ]

    def forbidden(*_, **__):
        pytest.fail("something was started or connected")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(programs, "run", forbidden)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return answers, asked


def untrusted(url):
    """A source that was never judged: what a forged job could hold."""
    return Source(text=url, kind=SourceKind.URL, trusted=False)


@pytest.mark.parametrize("scheme", ["https://", "ssh://git@"])
@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_in_every_spelling(host, scheme, resolver, tmp_path):
    url = f"{scheme}{host}/a/b"
    with pytest.raises(BlockedAddress) as caught:
        parse_source(url, trusted=False)
    assert "FLOPS_ALLOW_HOSTS" in caught.value.hint
    for attempt in (
        lambda: checkout(untrusted(url), tmp_path / "out"),
        lambda: resolve_commit(untrusted(url)),
        lambda: find_route(url, allow_hosts=["git.example.org", "10.9.9.9"]),
    ):
        with pytest.raises(BlockedAddress):
            attempt()
    assert resolver[1] == []


@pytest.mark.parametrize("host", UNSPELLABLE)
def test_hosts_that_no_project_may_spell_so(host, resolver):
    with pytest.raises(BadUrl):
        parse_source(f"https://{host}/a/b", trusted=False)
    assert resolver[1] == []


@pytest.mark.parametrize(
    "url",
    ["ext::sh -c id", "--upload-pack=x", "file:///etc", "/etc", ".", "git://h.example/a", "git@h.example:a/b", "http://h.example/a", "ftp://h/a"],
)  # fmt: skip
def test_other_ways_are_closed(url, resolver, tmp_path):
    with pytest.raises(BadUrl):
        parse_source(url, trusted=False, allow_hosts=["h.example"])
    with pytest.raises(FlopsError):
        resolve_commit(untrusted(url))


@pytest.mark.parametrize(
    ("url", "more"),
    [
        ("ext::sh -c x", ""),
        ("-x", ""),
        ("git@h.example:a/b", ""),
        ("https://h.example/a/b?x", ""),
        ("https://u:p@h.example/a/b", "git_credential"),
        ("https://h.example/a/b/tree/main/digits", "ml_repo_ref and ml_repo_subdir"),
    ],
)
def test_a_project_is_told_of_nothing_that_only_commands_take(url, more):
    with pytest.raises((BadUrl, CredentialInUrl)) as caught:
        parse_source(url, trusted=False)
    hint = caught.value.hint
    assert (more or "https://HOST/OWNER/REPOSITORY or ssh://git@HOST/OWNER/REPOSITORY") in hint
    assert not any(word in hint for word in ("git@HOST:", "directory", "--ref", "credential helper"))


def test_a_token_in_the_url_is_never_repeated():
    for url in ("https://user:tok3n@h.example/a/b", "https://tok3n@h.example/a/b", "ssh://git:tok3n@h.example/a/b"):
        with pytest.raises(CredentialInUrl) as caught:
            parse_source(url, trusted=False)
        assert "tok3n" not in str(caught.value.to_json())


@pytest.mark.parametrize(
    "found", [["10.0.0.1"], ["93.184.215.14", "10.0.0.1"], ["93.184.215.14", "::1"], ["fe80::1%eth0"], ["64:ff9b::a00:1"], ["169.254.169.254"]]
)  # fmt: skip
def test_a_name_with_any_private_address(found, resolver, tmp_path):
    resolver[0]["git.example.org"] = [found]
    for url in ("https://git.example.org/a/b", "ssh://git@git.example.org/a/b"):
        source = parse_source(url, trusted=False)
        with pytest.raises(BlockedAddress):
            checkout(source, tmp_path / "out")
        with pytest.raises(BlockedAddress):
            resolve_commit(source)
        assert find_route(url, allow_hosts=["GIT.example.org."]).addresses
    assert find_route("https://git.example.org/a/b", allow_hosts=[one for one in found if not is_public(literal(one.partition("%")[0]))] + ["fe80::1"])  # fmt: skip


def test_a_resolver_that_changes_its_mind_is_asked_once(resolver):
    """The pinned addresses go to git; a second answer would be a private one."""
    resolver[0]["git.example.org"] = [["93.184.215.14", "2606:2800::1"], ["127.0.0.1"]]
    route = find_route("https://Git.example.org/a/b")
    assert "http.curloptResolve=git.example.org:443:93.184.215.14,[2606:2800::1]" in route.options
    assert "http.followRedirects=false" in route.options
    assert resolver[1] == ["git.example.org"]
    with pytest.raises(BlockedAddress):
        find_route("https://git.example.org/a/b")
    resolver[0]["git.example.org"] = [["93.184.215.14"]]
    assert (
        "http.curloptResolve=git.example.org:8443:93.184.215.14" in find_route("https://git.example.org:8443/a").options
    )


def test_ssh_connects_to_the_pinned_address_and_to_nothing_of_this_account(resolver, tmp_path):
    resolver[0]["git.example.org"] = [["93.184.215.14"]]
    given = find_route("ssh://git@git.example.org:2222/a/b").environment(tmp_path)
    command = given["GIT_SSH_COMMAND"]
    for wanted in ("-F none", "HostName=93.184.215.14", "BatchMode=yes", "IdentityFile=none", "IdentityAgent=none", "ProxyCommand=none"):  # fmt: skip
        assert wanted in command
    assert "HostKeyAlias=[git.example.org]:2222" in command
    assert list(tmp_path.iterdir()) == []


def test_no_such_host(resolver):
    with pytest.raises(CloneFailed, match="was not found"):
        find_route("https://git.example.org/a/b")


def test_behind_a_proxy_its_name_service_counts(resolver, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "direct.example")
    route = find_route("https://git.example.org/a/b")
    assert not [one for one in route.options if "curloptResolve" in one]
    with pytest.raises(CloneFailed):
        find_route("https://direct.example/a/b")
    with pytest.raises(CloneFailed):
        find_route("ssh://git@git.example.org/a/b")
    resolver[0]["git.example.org"] = [["10.0.0.1"]]
    with pytest.raises(BlockedAddress):
        find_route("https://git.example.org/a/b")


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://127.0.0.1:8443/a/b", "127.0.0.1"),
        ("https://git.internal/a/b", "Git.Internal"),
        ("https://[fd00::1]/a/b", "fd00:0::1"),
        ("ssh://git@10.0.0.9/a/b", "10.0.0.9"),
    ],
)
def test_what_the_operator_lists_is_allowed(url, host, resolver):
    for name in ("127.0.0.1", "git.internal", "fd00::1", "10.0.0.9"):
        resolver[0][name] = [["10.7.7.7"] if name == "git.internal" else [name]]
    assert not parse_source(url, trusted=False, allow_hosts=["other", host]).trusted
    assert find_route(url, allow_hosts=["other", host]).addresses
    for others in ([], ["other"], ["internal"], ["0.0.1"]):
        with pytest.raises(BlockedAddress):
            parse_source(url, trusted=False, allow_hosts=others)
    assert not allows(["127.0.0.1"], "127.1")


def test_a_directory_only_where_it_is_allowed(tmp_path):
    done = parse_source(str(tmp_path), trusted=False, allow_local=True)
    assert (done.directory, done.trusted) == (tmp_path, False)
    for text in (str(tmp_path / "nothing"), "relative", "~"):
        with pytest.raises(BadUrl):
            parse_source(text, trusted=False, allow_local=True)


@pytest.mark.parametrize(
    ("url", "fits"),
    [
        ("https://git.example.org/a/b", True),
        ("https://GIT.example.org:443/a/b", True),
        ("https://git.example.org:8443/a/b", False),
        ("https://example.org/a/b", False),
        ("https://git.example.org.evil.example/a/b", False),
        ("https://evilgit.example.org/a/b", False),
        ("ssh://git@git.example.org/a/b", False),  # its password is no key
    ],
)
def test_a_credential_fits_its_host_alone(url, fits, resolver, tmp_path):
    for name in ("git.example.org", "example.org", "git.example.org.evil.example", "evilgit.example.org"):
        resolver[0][name] = [["93.184.215.14"]]
    assert GIVEN.fits(url) is fits
    given = find_route(url, credential=GIVEN).environment(tmp_path)
    assert ("GIT_CONFIG_VALUE_0" in given) is fits
    if fits:
        assert given["GIT_CONFIG_KEY_0"] == "http.https://git.example.org:443/.extraHeader"
        assert given["GIT_CONFIG_VALUE_0"].endswith(base64.b64encode(b"robot:s3cret").decode())
    else:
        assert base64.b64encode(b"robot:s3cret").decode() not in str(given)


def test_ports_and_brackets_of_credentials():
    own = GitCredential(host="git.example.org:8443", username="u", password="p")
    assert own.fits("https://git.example.org:8443/a")
    assert not own.fits("https://git.example.org/a")
    for host in ("fd00::1", "[fd00::1]"):
        assert GitCredential(host=host, username="u", password="p").fits("https://[fd00::1]/a")
    assert not GitCredential(host="h:x", username="u", password="p").fits("https://h/a")


def test_a_key_goes_to_ssh_in_a_file_of_its_own(resolver, tmp_path):
    resolver[0]["git.example.org"] = [["93.184.215.14"]]
    key = GitCredential(host="git.example.org", username="git", password=KEY)
    assert key.fits("ssh://git@git.example.org/a/b")
    assert not key.fits("https://git.example.org/a/b")
    given = find_route("ssh://git@git.example.org/a/b", credential=key).environment(tmp_path)
    file = tmp_path / "identity"
    assert (file.read_text(), file.stat().st_mode & 0o777) == (KEY, 0o600)
    assert f'IdentityFile="{file}"' in given["GIT_SSH_COMMAND"]
    assert "abc" not in str(given)


def test_no_secret_in_words_that_others_see(resolver, tmp_path):
    resolver[0]["git.example.org"] = [["93.184.215.14"]]
    route = find_route("https://git.example.org/a/b", credential=GIVEN)
    git = Git(directory=tmp_path, seconds=5, trusted=False, network=True, route=route)
    for shown in (repr(GIVEN), repr(route), repr(git), str(route.options), str(git._protocols())):
        assert "s3cret" not in shown
        assert base64.b64encode(b"robot:s3cret").decode() not in shown


def test_git_without_a_route_may_use_no_transport(tmp_path):
    git = Git(directory=tmp_path, seconds=5, trusted=False, network=True)
    assert not [option for option in git._protocols() if option.endswith(".allow=always")]


@settings(deadline=None)
@given(st.ip_addresses(v=4), st.sampled_from(["{}", "0x{:x}", "{:d}", "0{:o}"]))
def test_spellings_do_not_change_what_is_judged(address, form):
    spelled = form.format(address if form == "{}" else int(address))
    assert literal(spelled) == address
    assert is_public(literal(f"::ffff:{address}")) == is_public(address)
    assert is_public(literal(f"64:ff9b::{address}")) == is_public(address)
