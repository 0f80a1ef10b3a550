"""Directories whose owner attacks: links put where directories were, at any moment, and a `.git` that lies about its objects."""

import hashlib
import os
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit import test_checkout as samples

from flops.errors import CloneFsck, FlopsError, RepositoryLimit, RepositoryLink, SourceError, SubdirNotFound
from flops.repository import objects, worktree
from flops.repository.checkout import checkout
from flops.repository.git import Git
from flops.repository.source import parse_source, url_image_path
from flops.repository.tree_writer import TreeLimits, TreeWriter

git, take, work = samples.git, samples.take, samples.work  # the last two are fixtures
CANARY = "private = 'canary'\n"
FILES = {"model_manager.py": "x = 1\n", "data/part.py": "y = 2\n", "data/deep/end.py": "z = 3\n"}


@pytest.fixture
def private(tmp_path):
    """A directory of somebody else with files of the same names."""
    return fill(tmp_path / "private", dict.fromkeys(["part.py", "deep/end.py", "data/part.py"], CANARY))


def fill(place, files):
    for path, text in files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)
    return place


def committed(place, files=FILES, object_format="sha1"):
    fill(place, files)
    git(place, "init", "--quiet", "--initial-branch=main", f"--object-format={object_format}")
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "-m", "first")
    return git(place, "rev-parse", "HEAD")


def read_all(root):
    return "".join(path.read_text() for path in Path(root).rglob("*") if path.is_file() and not path.is_symlink())


def replaced(place, target):
    """Put a link where a directory is, as its owner can at any moment."""
    place.rename(place.with_name(place.name + ".moved"))
    place.symlink_to(target)


# --- links ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["data", "data/deep"])
@pytest.mark.parametrize("ignored", [True, False])
def test_tracked_files_are_not_read_through_a_link(tmp_path, private, take, name, ignored):
    place = tmp_path / "digits"
    committed(place)
    replaced(place / name, private / "deep" if name == "data/deep" else private)
    if ignored:
        (place / ".git/info/exclude").write_text("data\ndeep\n*.moved\n")
    with pytest.raises(RepositoryLink, match=rf"^{name} is a symbolic link that leaves the repository"):
        take(place)


def test_a_link_that_stays_inside_is_packed_as_one(tmp_path, take):
    place = tmp_path / "digits"
    head = committed(place)
    replaced(place / "data", "data.moved")
    (place / ".git/info/exclude").write_text("data\n")
    done = take(place)
    assert [file.path for file in done.files if file.link] == ["data"]
    assert (done.path / "data").is_symlink()
    assert "data/part.py" not in {file.path for file in done.files}
    assert done.commit.startswith(f"{head}-dirty-")


def test_a_file_where_a_directory_was_tracked(tmp_path, take):
    place = tmp_path / "digits"
    committed(place)
    (place / "data").rename(place / ".git/data")
    (place / "data").write_text("\n")
    assert [file.path for file in take(place).files] == ["data", "model_manager.py"]


class Swapping(TreeWriter):
    """Lets the directory's owner act after the files were listed and before they are read."""

    def __init__(self, destination, *, act, after=0):
        destination.mkdir()
        super().__init__(destination, limits=TreeLimits(), allow_secrets=())
        self._acts, self._after = [act], after

    def file(self, path, chunks, *, size, executable):
        done = super().file(path, chunks, size=size, executable=executable)
        if self._acts and len(self._files) > self._after:
            self._acts.pop()()
        return done


@pytest.mark.parametrize("with_git", [True, False])
def test_a_directory_that_becomes_a_link_while_files_are_read(tmp_path, private, with_git):
    place = tmp_path / "digits"
    committed(place, {"a.py": "first\n", **FILES})
    if not with_git:
        (place / ".git").rename(tmp_path / "git")
    writer = Swapping(tmp_path / "out", act=lambda: replaced(place / "data", private))
    tree = worktree.look(Git(directory=place, seconds=60, trusted=False), place, "")
    assert (tree.names is not None) == with_git
    worktree.copy(tree, writer, TreeLimits())
    with pytest.raises(RepositoryLink, match=r"^data is a symbolic link"):
        writer.close()
    assert "canary" not in read_all(tmp_path / "out")


def test_a_directory_that_was_moved_after_it_was_opened(tmp_path, private):
    """Its descriptor is the directory that was there; what took its name is not looked at."""
    place = fill(tmp_path / "digits", {"data/a.py": "a\n", "data/part.py": "y = 2\n"})
    writer = Swapping(tmp_path / "out", act=lambda: replaced(place / "data", private))
    tree = worktree.look(Git(directory=place, seconds=60), place, "")
    worktree.copy(tree, writer, TreeLimits())
    assert [file.path for file in writer.close()[0]] == ["data/a.py", "data/part.py"]
    assert read_all(tmp_path / "out") in ("a\ny = 2\n", "y = 2\na\n")


@pytest.mark.parametrize("where", ["digits", "digits/data"])
def test_the_source_or_what_it_lies_in_becomes_a_link(tmp_path, private, where):
    place = fill(tmp_path / "digits", FILES)
    tree = worktree.look(Git(directory=place, seconds=60), place, "data")
    replaced(tmp_path / where, private)
    writer = Swapping(tmp_path / "out", act=lambda: None)
    with pytest.raises(SourceError, match="was moved while it was read"):
        worktree.copy(tree, writer, TreeLimits())
    assert not list((tmp_path / "out").iterdir())


def test_a_subdirectory_through_links(tmp_path, private, take):
    place = fill(tmp_path / "digits", FILES)
    (place / "inner").symlink_to("data")
    (place / "outer").symlink_to(private)
    assert [file.path for file in take(place, subdir="inner").files] == ["deep/end.py", "part.py"]
    for subdir in ("outer", "outer/data", "inner/../../private"):
        with pytest.raises(SubdirNotFound):
            take(place, subdir=subdir)


@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    at = os.open(tmp_path, os.O_RDONLY)
    writer = Swapping(tmp_path / "out", act=lambda: None)
    try:
        with pytest.raises(SourceError, match="pipe changed while it was read"):
            worktree._read("pipe", at, writer)
    finally:
        os.close(at)


def test_a_path_too_deep_is_told_and_nothing_stays_open(tmp_path, take):
    fill(tmp_path / "digits", FILES)
    (tmp_path / "digits" / "/".join("d" * 200)).mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RepositoryLimit, match="a path has 65 levels"):
        take(tmp_path / "digits")
    assert take(tmp_path / "digits", subdir="data").files
    assert len(os.listdir("/proc/self/fd")) == before


NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@given(
    files=st.sets(PATHS, min_size=1, max_size=8),
    swaps=st.lists(st.tuples(PATHS, st.booleans()), max_size=4),
    after=st.integers(-1, 4),
)
def test_whatever_becomes_a_link_nothing_beyond_it_is_read(files, swaps, after):
    """Every file of the outcome is one of the directory's own, under its own name, whenever links are put in."""
    with TemporaryDirectory() as room:
        place = Path(room, "digits")
        kept = {path for path in files if not any(other.startswith(f"{path}/") for other in files)}
        fill(place, {path: f"own {path}" for path in kept})

        def act():
            for number, (path, inside) in enumerate(swaps):
                if (place / path).is_dir() and not (place / path).is_symlink():
                    private = Path(room, f"private{number}")
                    below = [one.removeprefix(f"{path}/") for one in kept if one.startswith(f"{path}/")]
                    fill(private, dict.fromkeys(below, CANARY))
                    (place / path).rename(Path(room, f"moved{number}"))
                    (place / path).symlink_to("a" if inside else private)

        writer = Swapping(Path(room, "out"), act=act, after=after)
        tree = worktree.look(Git(directory=place, seconds=60), place, "")
        if after < 0:
            act()
        try:
            worktree.copy(tree, writer, TreeLimits())
            writer.close()
        except FlopsError as error:
            assert error.hint  # noqa: PT017 - any of ours is fine, none has to come
        out = Path(room, "out")
        for found in out.rglob("*"):
            if found.is_file() and not found.is_symlink():
                assert found.read_text() == f"own {found.relative_to(out)}"


# --- objects ----------------------------------------------------------------------------------------------------------
def forge(place, name, content):
    """Put an object, header included, under any id."""
    path = place / ".git/objects" / name[:2] / name[2:]
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(zlib.compress(content))


def raw(place, name):
    return zlib.decompress((place / ".git/objects" / name[:2] / name[2:]).read_bytes())


@pytest.fixture(params=["sha1", "sha256"])
def impostor(request, tmp_path):
    """A directory with files of its own and, as HEAD, the commit of another one; and what puts a lie below that commit."""
    victim, place = tmp_path / "victim", tmp_path / "digits"
    head = committed(victim, object_format=request.param)
    committed(place, {path: f"evil = '{path}'\n" for path in FILES}, object_format=request.param)

    def forged(what):
        """Put the impostor's object (`what` follows the commit's name) under the id of the victim's; the others are true."""
        own = raw(place, git(place, "rev-parse", f"HEAD{what}"))
        for name in git(victim, "rev-list", "--objects", "--no-object-names", "HEAD").split():
            forge(place, name, raw(victim, name))
        forge(place, git(victim, "rev-parse", f"HEAD{what}"), own)
        (place / ".git/HEAD").write_text(f"{head}\n")
        return head

    return place, forged


@pytest.mark.parametrize(
    ("what", "subdir"),
    [
        ("^{tree}", ""),
        ("^{tree}", "data"),
        ("^{tree}", "data/deep"),
        (":data", ""),
        (":data", "data"),
        (":data", "data/deep"),
        (":data/deep", "data/deep"),
    ],
)
@pytest.mark.parametrize("ref", [None, "HEAD"])
@pytest.mark.parametrize("trusted", [True, False])
def test_a_tree_under_the_id_of_another(impostor, tmp_path, what, subdir, ref, trusted):
    """Images of the impostor's files would have had the victim's commit as their name."""
    place, forged = impostor
    forged(what)
    source = parse_source(str(place), trusted=trusted, allow_local=True)
    with pytest.raises(CloneFsck, match=r"not what its name says|hash mismatch"):
        checkout(source, tmp_path / "out", ref=ref, subdir=subdir)


@pytest.mark.parametrize("what", ["", ":model_manager.py"])
def test_a_commit_or_file_under_the_id_of_another(impostor, take, what):
    place, forged = impostor
    head = forged(what)
    assert take(place).commit != head
    with pytest.raises(SourceError):
        take(place, ref="HEAD")


def test_a_true_copy_keeps_its_commit(tmp_path, take):
    for number, object_format in enumerate(("sha1", "sha256")):
        place = tmp_path / f"digits{number}"
        head = committed(place, object_format=object_format)
        git(place, "pack-refs", "--all")
        git(place, "gc", "--quiet")
        for ref in (None, "HEAD"):
            for subdir in ("", "data", "data/deep"):
                assert take(place, ref=ref, subdir=subdir).commit == head


def test_trees_as_old_programs_wrote_them_are_true(tmp_path, take):
    """Modes with leading zeros or of a group that may write, and empty directories: `git ls-tree` shows none of it."""
    place = tmp_path / "digits"
    committed(place)

    def tree(*entries):
        content = b"".join(b"%s %s\0" % (mode, name) + bytes.fromhex(oid) for mode, name, oid in entries)
        name = hashlib.sha1(whole := b"tree %d\0" % len(content) + content).hexdigest()
        forge(place, name, whole)
        return name

    blob = {path: git(place, "rev-parse", f"HEAD:{path}") for path in FILES}
    deep = tree((b"100664", b"end.py", blob["data/deep/end.py"]))
    data = tree((b"040000", b"deep", deep), (b"40000", b"empty", tree()), (b"100664", b"part.py", blob["data/part.py"]))
    root = tree((b"040000", b"data", data), (b"100644", b"model_manager.py", blob["model_manager.py"]))
    head = git(place, "commit-tree", root, "-m", "old")
    git(place, "update-ref", "HEAD", head)
    for ref in (None, "HEAD"):
        assert take(place, ref=ref).commit == head
        assert take(place, ref=ref, subdir="data").commit == head


def test_a_damaged_object_is_told_as_one(tmp_path, take):
    place = tmp_path / "digits"
    committed(place)
    name = git(place, "rev-parse", "HEAD^{tree}")
    path = place / ".git/objects" / name[:2] / name[2:]
    path.chmod(0o644)
    path.write_bytes(b"garbage")
    for ref in (None, "HEAD"):
        with pytest.raises(CloneFsck) as caught:
            take(place, ref=ref)
        assert "git fsck" in caught.value.hint


@pytest.mark.parametrize("lacking", [" tree ", " blob "])
def test_objects_that_change_after_they_were_listed(tmp_path, lacking):
    """A listing is short, and what it lists may by then be a tree that names itself a billion times over."""
    head = committed(tmp_path)

    class Changing(Git):
        def records(self, *arguments):
            listed = list(super().records(*arguments))
            listed.remove(next(one for one in listed if lacking in one))
            return iter(listed)

    plain, changing = (kind(directory=tmp_path, seconds=60) for kind in (Git, Changing))
    tree = objects.find(plain, head, "").tree
    assert {entry.path for entry in objects.entries(plain, tree)} == set(FILES)
    with pytest.raises(CloneFsck):
        list(objects.entries(changing, tree))


def test_no_transport_is_used_whatever_the_configuration_allows(work, tmp_path):
    """Git fetches objects that a partial clone lacks while it reads, by the command that stands in its configuration."""
    git(work, "config", "remote.origin.url", f"ext::touch {tmp_path}/canary")
    git(work, "config", "protocol.ext.allow", "always")
    Git(directory=work, seconds=60, trusted=False).run("fetch", "origin", check=False)
    assert not (tmp_path / "canary").exists()


# --- names ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ref", [None, "HEAD"])
def test_a_directory_of_a_project_never_has_a_remotes_name(work, tmp_path, ref):
    source = parse_source(str(work), trusted=False, allow_local=True)
    for subdir, repository in (("", "local/digits"), ("learning", "local/digits/learning")):
        done = checkout(source, tmp_path / f"out{subdir}", ref=ref, subdir=subdir)
        assert (done.repository, done.source) == (repository, "local/Digits")
        assert done.commit == git(work, "rev-parse", "HEAD")
    assert source.repository == "local/digits"


@given(
    st.lists(st.sampled_from(["local", "Local", "_", "-local.", "x", "remote"]), min_size=1, max_size=3),
    st.sampled_from(["", "local", "_/local/x"]),
)
def test_no_url_has_the_image_path_of_a_directory(names, subdir):
    for url in (f"https://host.example/{'/'.join(names)}", f"git@host.example:{'/'.join(names)}.git"):
        assert url_image_path(url, subdir).split("/")[0] != "local"
    assert url_image_path("https://host.example/local/digits") == "remote/local/digits"
