"""Sources, refs and trees: directories with and without git, links, limits, and the addresses that are refused."""

import os
import subprocess
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests import hostile_packs

from flops.cli import write
from flops.errors import (
    BadRef,
    BadUrl,
    BlockedAddress,
    CloneAuth,
    CloneFailed,
    CloneFsck,
    CredentialInUrl,
    DiskFull,
    EmptyRepo,
    FileLimit,
    FlopsError,
    RefNotFound,
    RepositoryLimit,
    RepositoryLink,
    SecretFound,
    SourceError,
    SubdirNotFound,
)
from flops.repository import git as git_program
from flops.repository import revision
from flops.repository.checkout import checkout, resolve_commit
from flops.repository.source import SourceKind, image_path, parse_source, without_credentials
from flops.repository.tree_writer import TreeLimits, TreeWriter, check_path


def git(place, *arguments):
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(place),
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_DATE": "1700000000 +0100",
        "GIT_COMMITTER_DATE": "1700000000 +0100",
    }
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    done = subprocess.run(
        ["git", "-C", str(place), *identity, *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def work(tmp_path):
    """A work tree named Digits with one commit and a remote."""
    place = tmp_path / "Digits"
    (place / "learning").mkdir(parents=True)
    git(place, "init", "--quiet", "--initial-branch=main")
    git(place, "remote", "add", "origin", "https://user:token@git.example.org/Group/Sub/Digits.git")
    (place / "model_manager.py").write_text("x = 1\n")
    (place / "learning/part.py").write_text("y = 2\n")
    (place / "run.sh").write_text("#!/bin/sh\n")
    (place / "run.sh").chmod(0o755)
    (place / ".gitignore").write_text("*.bin\n")
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "-m", "first")
    return place


@pytest.fixture
def take(tmp_path):
    """Check out into a new directory each time."""
    count = iter(range(100))
    return lambda source, **options: checkout(parse_source(str(source)), tmp_path / f"out{next(count)}", **options)


# --- sources ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "repository"),
    [
        ("https://github.example/Acme/Digits", "acme/digits"),
        ("https://github.example/Acme/Digits.git/", "acme/digits"),
        ("https://gitlab.example:8443/group/Sub.Group/repo.git", "group/sub.group/repo"),
        ("ssh://git@host.example:2222/acme/digits.git", "acme/digits"),
        ("git@host.example:Acme/Digits.git", "acme/digits"),
        ("host.example:acme/digits", "acme/digits"),
        ("ssh://git@[::1]:22/~user/my repo".replace(" ", "_"), "user/my_repo"),
        ("https://host.example/acme/UPPER--case__x._y", "acme/upper--case__x-y"),
        ("https://host.example/%C3%A4cme/digits", "cme/digits"),
    ],
)
def test_a_url_names_an_image_path(text, repository):
    """Any host, groups, upper case: the original took one host and lower-cased the owner only."""
    source = parse_source(text)
    assert (source.kind, source.repository) == (SourceKind.URL, repository)
    assert source.url == text.rstrip("/")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("ext::sh -c 'touch /tmp/x'", BadUrl),
        ("--upload-pack=touch /tmp/x", BadUrl),
        ("-oProxyCommand=x@h:a/b", BadUrl),
        ("file:///etc", BadUrl),
        ("git://host.example/a/b", BadUrl),
        ("http://host.example/a/b", BadUrl),
        ("ftp://host.example/a/b", BadUrl),
        ("git+ssh://host.example/a/b", BadUrl),
        ("https://", BadUrl),
        ("https:///a/b", BadUrl),
        ("https://host.example", BadUrl),
        ("https://host.example/", BadUrl),
        ("https://host.example/a//b", BadUrl),
        ("https://host.example/a/../b", BadUrl),
        ("https://host.example/%2e%2e/b", BadUrl),
        ("https://host.example/a/b?x=1", BadUrl),
        ("https://host.example/a/b#x", BadUrl),
        ("https://host.example/a/b%0aHost:x", BadUrl),
        ("https://host.example/a/b\n", BadUrl),
        ("https://host.example/a\0b", BadUrl),
        ("https://host.example:port/a/b", BadUrl),
        ("https://host.example:99999/a/b", BadUrl),
        ("https://[::1/a/b", BadUrl),
        ("https://-host.example/a/b", BadUrl),
        ("ssh://-oProxyCommand=x/a/b", BadUrl),
        ("ssh://-l@host.example/a/b", BadUrl),
        ("ssh://host.example/-a/b", BadUrl),
        ("git@host.example:-a/b", BadUrl),
        ("https://host.example/" + "a/" * 5000, BadUrl),
        ("", BadUrl),
        ("/no/such/directory", BadUrl),
        ("host.example/acme/digits", BadUrl),
        ("https://host.example/acme/digits/tree/main/sub", BadUrl),
        ("https://user:token@host.example/a/b", CredentialInUrl),
        ("https://token@host.example/a/b", CredentialInUrl),
        ("ssh://git:token@host.example/a/b", CredentialInUrl),
        ("user:token@host.example/a/b", CredentialInUrl),
    ],
)
def test_what_is_no_source(text, error):
    with pytest.raises(error) as caught:
        parse_source(text)
    assert type(caught.value) is error
    assert caught.value.hint
    assert "token" not in caught.value.message + caught.value.hint
    with pytest.raises(FlopsError):
        parse_source(text, trusted=False)


def test_hints_say_what_to_write(tmp_path):
    def hint(text):
        with pytest.raises(BadUrl) as caught:
            parse_source(text)
        return caught.value.hint

    assert "https://host.example/acme/digits" in hint("host.example/acme/digits")
    assert "https://host.example/a/b" in hint("http://user:pw@host.example/a/b")
    assert "https://h.example/a/b with --ref and --subdir" in hint("https://h.example/a/b/-/tree/main/x")


@pytest.mark.parametrize(
    "text", ["git@host.example:a/b", "host.example:a/b", ".", "/tmp", "file:///tmp", "git://h/a/b"]
)
def test_a_service_takes_urls_only(text):
    with pytest.raises(BadUrl):
        parse_source(text, trusted=False)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f.1", "017700000001", "[::1]", "[::ffff:10.0.0.1]", "[fd00::1]", "[fe80::1]",
        "169.254.169.254", "10.1.2.3", "192.168.0.1", "172.16.0.1", "100.64.0.1", "0.0.0.0", "localhost", "LOCALHOST.",
        "db.localhost", "printer.local", "metadata.google.internal", "[2002:7f00:1::]",
    ],
)  # fmt: skip
def test_a_service_refuses_private_addresses(host):
    with pytest.raises(BlockedAddress):
        parse_source(f"https://{host}/a/b", trusted=False)
    assert parse_source(f"https://{host}/a/b").kind is SourceKind.URL


def test_a_service_takes_public_hosts():
    assert not parse_source("https://git.example.org/a/b", trusted=False).trusted
    assert parse_source("ssh://git@8.8.8.8/a/b", trusted=False).repository == "a/b"


@given(st.text(max_size=60))
@example("~nobody-of-this-name/repository")
def test_any_text_is_a_source_or_a_clear_error(text):
    for trusted in (True, False):
        try:
            name = parse_source(text, trusted=trusted).repository
        except FlopsError as error:
            name = error.hint
        assert name


@given(st.lists(st.text(max_size=30), max_size=4))
def test_an_image_path_is_one_of_the_distribution_specification(parts):
    name = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
    import re

    assert re.fullmatch(rf"{name}(/{name})*", image_path(*parts))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:t@h.example/a/b.git", "https://h.example/a/b.git"),
        ("ssh://git:t@h.example/a/b", "ssh://git@h.example/a/b"),
        ("git@h.example:a/b", "git@h.example:a/b"),
        ("/srv/git/x.git", None),
        ("file:///srv/x", None),
        ("../x", None),
        ("https://[::1/x", None),
    ],
)
def test_a_remote_is_shown_without_credentials(url, shown):
    assert without_credentials(url) == shown


# --- refs -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "ref",
    ["", "--x", "-b", "a..b", "a b", "a:b", "a\nb", "a~1", "a^{}", "@{u}", "a.lock", "/a", "a/", "x" * 256, "HEAD@{1}"],
)
def test_what_is_no_ref(ref):
    with pytest.raises(BadRef):
        revision.check_ref(ref)


def test_refs(work):
    assert revision.check_ref("feature/x-1.0") == "feature/x-1.0"
    assert revision.check_ref("A" * 40) == "a" * 40


@pytest.mark.parametrize(
    ("stderr", "error"),
    [
        ("fatal: could not read Username for 'https://u:secret@h': terminal prompts disabled", CloneAuth),
        ("git@h: Permission denied (publickey).\nfatal: Could not read from remote repository.", CloneAuth),
        ("Host key verification failed.\nfatal: Could not read from remote repository.", CloneAuth),
        ("error: object x: gitmodulesUrl: disallowed submodule url\nfatal: fsck error in packed object", CloneFsck),
        ("fatal: write error: File too large\nfatal: index-pack failed", RepositoryLimit),
        ("fatal: write error: No space left on device", DiskFull),
        ("fatal: unable to access 'https://u:secret@h/': Could not resolve host: h", CloneFailed),
        ("", CloneFailed),
    ],
)
def test_what_git_says_becomes_an_error_without_credentials(stderr, error):
    found = git_program.failure(stderr)
    assert type(found) is error
    assert found.hint
    assert "secret" not in found.message


# --- directories ------------------------------------------------------------------------------------------------------
def test_a_clean_work_tree_has_its_commit(work, take):
    done = take(work)
    assert done.commit == git(work, "rev-parse", "HEAD")
    assert done.source == "https://git.example.org/Group/Sub/Digits.git"
    assert done.repository == "group/sub/digits"
    assert done.created == datetime.fromtimestamp(1700000000, tz=UTC)
    assert [(file.path, file.executable) for file in done.files] == [
        (".gitignore", False),
        ("learning/part.py", False),
        ("model_manager.py", False),
        ("run.sh", True),
    ]
    assert os.access(work / "run.sh", os.X_OK)


def test_changes_give_a_name_of_their_own(work, take):
    head = git(work, "rev-parse", "HEAD")
    (work / "weights.bin").write_bytes(b"ignored")
    assert take(work).commit == head
    names = [head]
    changes = [
        lambda: (work / "model_manager.py").write_text("x = 2\n"),
        lambda: (work / "new.py").write_text("\n"),
        lambda: (work / "run.sh").chmod(0o644),
        (work / "learning/part.py").unlink,
    ]
    for change in changes:
        change()
        names.append(take(work).commit)
        assert names[-1].startswith(f"{head}-dirty-")
        assert len(names[-1]) == 40 + 7 + 12
    assert len(set(names)) == len(names)
    assert take(work).commit == names[-1]
    git(work, "checkout", "--quiet", ".")
    (work / "new.py").unlink()
    assert take(work).commit == head


def test_what_was_checked_out_does_not_change(work, take):
    done = take(work)
    (work / "model_manager.py").write_text("later\n")
    assert (done.path / "model_manager.py").read_text() == "x = 1\n"


def test_a_subdirectory_is_judged_alone(work, take):
    head = git(work, "rev-parse", "HEAD")
    (work / "model_manager.py").write_text("changed\n")
    for done in (take(work / "learning"), take(work, subdir="learning"), take(work, subdir="./learning/")):
        assert (done.commit, [file.path for file in done.files]) == (head, ["part.py"])
        assert done.repository == "group/sub/digits/learning"
    for subdir in ("nothing", "../Digits", "/etc", "run.sh"):
        with pytest.raises(SubdirNotFound):
            take(work, subdir=subdir)


def test_a_ref_takes_history_instead_of_the_directory(work, take):
    first = git(work, "rev-parse", "HEAD")
    git(work, "tag", "--annotate", "v1", "-m", "one")
    (work / "model_manager.py").write_text("x = 2\n")
    git(work, "commit", "--quiet", "--all", "-m", "second")
    (work / "model_manager.py").write_text("not committed\n")
    for ref in ("v1", first, first[:8]):
        done = take(work, ref=ref)
        assert (done.commit, (done.path / "model_manager.py").read_text()) == (first, "x = 1\n")
        assert done.repository == "group/sub/digits"
    assert take(work / "learning", ref="main").repository == "group/sub/digits/learning"
    assert [file.path for file in take(work, ref="main", subdir="learning").files] == ["part.py"]
    with pytest.raises(RefNotFound):
        take(work, ref="nope")
    with pytest.raises(BadRef):
        take(work, ref="--all")


def test_a_directory_without_git_has_a_name_by_content(tmp_path, take):
    place = tmp_path / "My Digits!"
    (place / "__pycache__").mkdir(parents=True)
    (place / "__pycache__/x.pyc").write_bytes(b"")
    (place / "model_manager.py").write_text("x = 1\n")
    done = take(place)
    assert done.commit.startswith("0" * 40 + "-dirty-")
    assert (done.repository, done.source) == ("local/my-digits", "local/My Digits!")
    assert done.created == datetime(1970, 1, 1, tzinfo=UTC)
    assert [file.path for file in done.files] == ["model_manager.py"]
    assert take(place).commit == done.commit
    (place / "model_manager.py").write_text("x = 2\n")
    assert take(place).commit != done.commit
    with pytest.raises(RefNotFound):
        take(place, ref="main")


def test_a_work_tree_before_its_first_commit(tmp_path, take):
    git(tmp_path, "init", "--quiet", "new")
    (tmp_path / "new/a.py").write_text("\n")
    assert take(tmp_path / "new").commit.startswith("0" * 40 + "-dirty-")


def test_ignored_directories_inside_a_work_tree_are_plain_ones(work, take):
    (work / ".gitignore").write_text("build/\n")
    (work / "build").mkdir()
    (work / "build/a.py").write_text("\n")
    assert take(work / "build").repository == "local/build"


def test_repositories_inside_a_directory_are_named_and_left_out(work, take):
    git(work, "init", "--quiet", "vendor/part")
    (work / "vendor/part/a.py").write_text("\n")
    done = take(work)
    assert any(warning.startswith("vendor/part ") for warning in done.warnings)
    assert not any(file.path.startswith("vendor") for file in done.files)


def test_a_bare_repository_is_no_directory_of_files(work, tmp_path, take):
    git(tmp_path, "clone", "--quiet", "--bare", str(work), "bare.git")
    with pytest.raises(SourceError, match="without its files"):
        take(tmp_path / "bare.git")


def test_reading_a_directory_runs_nothing_of_it(work, take, tmp_path):
    """Not the monitor, filters and hooks that its own configuration names."""
    canary = tmp_path / "canary"
    for key in ("core.fsmonitor", "filter.evil.clean", "filter.evil.smudge", "core.sshCommand", "core.pager"):
        git(work, "config", key, f"touch {canary};:")
    for hook in ("post-index-change", "post-checkout"):
        (work / ".git/hooks").mkdir(exist_ok=True)
        (work / ".git/hooks" / hook).write_text(f"#!/bin/sh\ntouch {canary}\n")
        (work / ".git/hooks" / hook).chmod(0o755)
    (work / ".gitattributes").write_text("* filter=evil\n")
    (work / "model_manager.py").write_text("x = 9\n")
    assert "-dirty-" in take(work).commit
    assert (take(work, ref="HEAD").path / "model_manager.py").read_text() == "x = 1\n"
    assert not canary.exists()


def test_fifos_and_empty_directories(work, tmp_path, take):
    place = tmp_path / "plain"
    place.mkdir()
    with pytest.raises(EmptyRepo):
        take(place)
    os.mkfifo(place / "pipe")
    (place / "a.py").write_text("\n")
    done = take(place)
    assert [file.path for file in done.files] == ["a.py"]
    assert done.warnings == ("pipe is not a file; it is not packed",)


def test_the_destination_must_be_empty(work, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("")
    with pytest.raises(SourceError, match="not empty"):
        checkout(parse_source(str(work)), tmp_path / "full")


def test_limits_hold_at_the_limit_and_not_above(work, take):
    size = sum(file.size for file in take(work).files)
    assert take(work, limits=TreeLimits(files=4, bytes=size, depth=2, text_bytes=6)).files
    for limits, error in (
        (TreeLimits(files=3), RepositoryLimit),
        (TreeLimits(bytes=size - 1), RepositoryLimit),
        (TreeLimits(depth=1), RepositoryLimit),
        (TreeLimits(text_bytes=5), FileLimit),
    ):
        for ref in (None, "HEAD"):
            with pytest.raises(error):
                take(work, limits=limits, ref=ref)


def test_reading_files_by_name(work, take):
    done = take(work)
    found = done.read(lambda path: path.endswith(".py"))
    assert dict(found) == {"learning/part.py": b"y = 2\n", "model_manager.py": b"x = 1\n"}
    assert "run.sh" not in found
    assert len(found) == 2


def test_a_source_that_is_no_url_has_no_remote_commit(tmp_path):
    with pytest.raises(SourceError):
        resolve_commit(parse_source(str(tmp_path)))


# --- trees ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def writer(tmp_path):
    (tmp_path / "tree").mkdir()
    return TreeWriter(tmp_path / "tree", limits=TreeLimits(), allow_secrets=())


def test_secrets_are_told_with_a_setting_that_holds_for_all_of_them(writer, tmp_path):
    for path in ("my keys/.env", "id_rsa"):
        writer.file(path, [b"x"], size=1, executable=False)
    with pytest.raises(SecretFound, match="2 likely secrets would") as caught:
        writer.close()
    assert caught.value.hint.endswith("set FLOPS_ALLOW_SECRETS='id_rsa,my keys/.env'")
    assert caught.value.findings[1].hint == "remove it, or set FLOPS_ALLOW_SECRETS='my keys/.env'"
    alone = TreeWriter(tmp_path / "other", limits=TreeLimits(), allow_secrets=["id_rsa"])
    alone.file("my keys/.env", [b"x"], size=1, executable=False)
    with pytest.raises(SecretFound, match=r"^a likely secret would end up in the images: my keys/\.env$") as caught:
        alone.close()
    assert caught.value.hint == caught.value.findings[0].hint


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/x",
        "a/../b",
        "a//b",
        "./a",
        ".git/config",
        "a/.GIT/x",
        "a\nb",
        "a\0b",
        ".wh.x",
        "x" * 256,
        "a\udc80",
        "a" + chr(0xFFFD),
        "",
    ],
)
def test_names_that_no_image_holds(path, writer):
    with pytest.raises(SourceError):
        writer.file(path, [b""], size=0, executable=False)


@pytest.mark.parametrize(
    ("path", "target"), [("a", "b"), ("a/b", "../c"), ("a/b/c", "../../d/e"), ("a", "./b"), ("a/l", ".."), ("a", "b/")]
)
def test_links_that_stay_inside(path, target, writer):
    assert writer.link(path, target).link == target


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("a", "/etc/passwd"),
        ("a", ".."),
        ("a", "../x"),
        ("a/b", "../../x"),
        ("a", "b/../c"),
        ("a", ""),
        ("a", "x//y"),
        ("a", ".git/x"),
        ("model_manager.py", "b"),
        ("conda.yaml", "b"),
        ("uv.lock", "b"),
        ("pylock.toml", "b"),
        ("python_env.yaml", "b"),
        ("a", "./../b"),
    ],
)
def test_links_that_are_refused(path, target, writer):
    writer.link(path, target)
    with pytest.raises(RepositoryLink, match=f"^{path} is a symbolic link") as caught:
        writer.close()
    assert [finding.path for finding in caught.value.findings] == [path]
    assert not (writer._destination / path).is_symlink()


def test_a_file_that_changes_while_it_is_read(writer):
    for chunks in ([b"abc"], [b"a"]):
        with pytest.raises(SourceError, match="changed"):
            writer.file(f"f{len(chunks[0])}", chunks, size=2, executable=False)


def test_object_ids_are_gits(writer):
    assert writer.file("a", [b"x = ", b"1\n"], size=6, executable=False).blob == blob(b"x = 1\n")


def blob(data):
    done = subprocess.run(["git", "hash-object", "--stdin"], input=data, capture_output=True, check=True, timeout=60)
    return done.stdout.decode().strip()


@given(st.text(max_size=40))
def test_any_path_is_fit_or_refused(path):
    try:
        check_path(path, depth=5)
    except FlopsError:
        return
    assert path
    assert not path.startswith("/")
    assert ".." not in path.split("/")


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\x7f", "\x80", "\x85", "\x9b", "\x9f"])
def test_names_with_control_characters_are_refused(work, take, character):
    """U+009B alone is what ESC [ is to a terminal."""
    with pytest.raises(SourceError, match="without control characters") as caught:
        check_path(f"a/x{character}31m.py", depth=5)
    assert character not in caught.value.message
    check_path("a/\u00a0.py", depth=5)
    if character > "\x00":
        (work / f"x{character}31m.py").write_text("")
        with pytest.raises(SourceError, match="without control characters"):
            take(work)


@pytest.mark.parametrize("target", [b"\xff\xfe", b"a\nb", b"a\x1b[31m", "a\x9b31m".encode()])
def test_links_to_unreadable_names_are_refused(work, take, target):
    os.symlink(target, bytes(work / "link"))
    with pytest.raises(SourceError, match="link is a symbolic link to"):
        take(work)


def test_a_directory_whose_name_is_no_utf8(tmp_path, take):
    place = os.path.join(os.fsencode(tmp_path), b"d\xff")
    os.mkdir(place)
    (tmp_path / os.fsdecode(b"d\xff") / "a.py").write_text("x = 1\n")
    taken = take(os.fsdecode(place))
    assert taken.source == "local/d?"
    assert taken.repository == "local/d"


def test_an_object_that_the_directorys_history_lacks_is_told(work, take):
    blob = git(work, "rev-parse", "HEAD:model_manager.py")
    (work / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(CloneFsck, match=r"model_manager\.py is missing"):
        take(work, ref="main")


def test_a_link_in_the_way_of_a_file_is_told(writer):
    writer.file("a/b", [b"x"], size=1, executable=False)
    writer.link("a", "elsewhere")
    with pytest.raises(SourceError, match="a can't be read or written"):
        writer.close()


# --- repositories that are larger than they look -----------------------------------------------------------------------
@pytest.mark.parametrize("take_ref", ["HEAD", None])
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda place: hostile_packs.wide(place, 9, files=True), "list of files has more than 16 MB"),
        (lambda place: hostile_packs.wide(place, 9, files=False), "list of files has more than 16 MB"),
        (lambda place: hostile_packs.deep(place, 30_000), "more than 16 MB, and paths of [0-9]{4} levels"),
    ],
    ids=["a billion files", "a billion directories", "thirty thousand levels"],
)
def test_a_small_repository_with_a_tree_without_end_is_too_large(tmp_path, take, make, told, take_ref):
    make(tmp_path / "bare")
    git(tmp_path, "clone", "--quiet", "--no-checkout", "--shared", "bare", "work")
    (tmp_path / "work/model_manager.py").write_text("\n")
    with pytest.raises(RepositoryLimit, match=told):
        take(tmp_path / "work", ref=take_ref, limits=TreeLimits(seconds=100))


def test_an_object_that_unfolds_to_more_than_the_memory_is_too_large(tmp_path):
    hostile_packs.inflated(tmp_path / "bare", 1 << 26)
    pack = next((tmp_path / "bare").glob("objects/pack/*.pack"))
    assert pack.stat().st_size < 10_000
    (tmp_path / "scratch").mkdir()
    bounded = git_program.Git(directory=tmp_path / "scratch", seconds=60, memory=1 << 26)
    bounded.run("init", "--quiet", "--bare")
    with pytest.raises(RepositoryLimit, match="git needs more than 64 MB of memory"):
        bounded.run("index-pack", pack)


def test_a_directory_of_any_depth_is_too_deep(tmp_path, take):
    place = tmp_path / "deep"
    place.mkdir()
    (place / "model_manager.py").write_text("\n")
    here = os.open(place, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        here, above = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(here)
    try:
        with pytest.raises(RepositoryLimit, match="more than 64"):
            take(place)
        assert write._read(place) == {}
    finally:  # Python's own removal calls itself for each level
        subprocess.run(["rm", "-rf", place], check=True)


def test_a_git_that_calculates_on_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(git_program, "PROCESSOR_SECONDS", 1)
    hostile_packs.inflated(tmp_path / "bare", 1 << 30)
    pack = next((tmp_path / "bare").glob("objects/pack/*.pack"))
    with pytest.raises(RepositoryLimit, match="more than 1 s of a processor"):
        git_program.Git(directory=tmp_path / "bare", seconds=100).run("index-pack", pack)


def test_a_commit_with_a_message_of_megabytes_is_refused(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "message").write_text("x" * (17 << 20))
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--file", "message")
    with pytest.raises(RepositoryLimit, match="more than 16 MB"):
        git_program.Git(directory=tmp_path, seconds=60).run("cat-file", "commit", "HEAD")
