"""The Debian base: apt's words, the file tree, and what is kept between builds (with a stand-in for apt-get)."""

import hashlib
import io
import json
import lzma
import os
import stat
import sys
import tarfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from flops.base import BasePackage
from flops.base.bytecode import Interpreter
from flops.base.debian import apt
from flops.base.debian.apt import DebianMirror, explain, read_archives, read_print_uris
from flops.base.debian.deb import DebEntry, DebEntryKind
from flops.base.debian.debian_base import SUITES, DebianBase, Suite
from flops.base.debian.filesystem import Package, merged, write_tree
from flops.errors import BaseUnavailable, DiskFull, LayerConflict
from flops.oci.blobs import BlobStore
from flops.oci.client import RegistryClient
from flops.oci.layer import LayerWriter
from flops.platforms import Platform
from flops.progress import Silent
from flops.registry.app import EmbeddedRegistry
from flops.settings import Settings
from flops.store.document_store import LIFETIME
from flops.store.shared import SharedCache

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64


# --- apt's words ---
def test_archives_are_those_whose_signed_index_says_debian():
    listed = (
        "http://third.example/deb/ bookworm main Third Party\n"
        "http://mirror.example/debian/ bookworm main Debian\n"
        "http://mirror.example/debian/ bookworm contrib Debian\n"
        "http://mirror.example/debian-security/ bookworm-security main Debian\n"
    )
    assert read_archives(listed) == ("http://mirror.example/debian/", "http://mirror.example/debian-security/")


def test_before_the_first_update_the_suites_name_has_to_do():
    listed = (
        "http://a.example/debian/ trixie-updates main $(ORIGIN)\n"
        "http://b.example/security/ trixie-security main $(ORIGIN)\n"
        "http://c.example/nodes/ nodistro main $(ORIGIN)\n"
    )
    assert read_archives(listed) == ("http://a.example/debian/", "http://b.example/security/")


def test_another_distribution_serves_no_debian():
    assert read_archives("http://archive.example/ubuntu/ noble main Ubuntu\n") == (None, None)
    assert read_archives("") == (None, None)


def test_print_uris_gives_name_version_and_hash():
    text = (
        "NOTE: this is not a package\n"
        f"'http://m.example/z.deb' zlib1g_1%3a1.2.13+dfsg-1_arm64.deb 85028 SHA256:{'a' * 64}\n"
        f"'http://m.example/t.deb' tzdata_2026f-0~deb12u1_all.deb 7 SHA256:{'b' * 64}\n"
        "'http://m.example/w.deb' weak_1_all.deb 7 MD5Sum:0123\n"
    )
    assert read_print_uris(text) == (
        BasePackage(name="tzdata", version="2026f-0~deb12u1", architecture="all", size=7, sha256="b" * 64),
        BasePackage(name="zlib1g", version="1:1.2.13+dfsg-1", architecture="arm64", size=85028, sha256="a" * 64),
    )


def test_a_missing_key_is_named_and_credentials_are_not():
    error = explain(
        "W: GPG error: http://u:secret@m.example: NO_PUBKEY 6ED0E7B82643E131\nE: not signed", doing="can't read"
    )
    assert "6ED0E7B82643E131" in error.message
    assert "FLOPS_DEBIAN_KEYRING" in error.hint
    other = explain("E: Failed to fetch http://u:secret@m.example/x  Could not connect\nE: second", doing="can't read")
    assert other.message == "can't read: Failed to fetch http://m.example/x  Could not connect"
    assert "--base-image" in other.hint


def test_a_mirror_that_smuggles_lines_is_refused(tmp_path):
    mirror = DebianMirror(main="http://m.example/\nTrusted: yes")
    with pytest.raises(BaseUnavailable, match="not a URI"):
        apt.AptRoot(tmp_path, mirror=mirror, suite="bookworm", platform=AMD64).update()


def test_a_full_disk_is_told_as_one_with_directory_and_bytes(monkeypatch, tmp_path):
    program = tmp_path / "bin" / "apt-get"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'E: Write error - write (28: No space left on device)' >&2\nexit 100\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    root = apt.AptRoot(
        tmp_path / "bases" / "apt-1", mirror=DebianMirror(main="http://m.example"), suite="trixie", platform=AMD64
    )
    with pytest.raises(DiskFull, match=rf"{tmp_path}/bases: \d+ of \d+ bytes are free"):
        root.update()


def test_a_machine_without_apt_says_what_to_use_instead(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BaseUnavailable, match="apt-get is not installed") as caught:
        apt.mirror()
    assert "--base-image" in caught.value.hint


def fake_apt(directory, monkeypatch, *, targets="", dump=""):
    """Programs of apt that say this and nothing else."""
    directory.mkdir(exist_ok=True)
    for name, text in (("apt-get", targets), ("apt-config", dump)):
        (directory / f"{name}.txt").write_text(text)
        (directory / name).write_text(f"#!/bin/sh\ncat '{directory}/{name}.txt'\n")
        (directory / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


def test_the_hosts_way_to_an_archive_is_taken_and_its_hooks_are_not(monkeypatch, tmp_path):
    fake_apt(
        tmp_path / "bin",
        monkeypatch,
        targets="http://m.example/debian/ trixie main Debian\nhttp://m.example/sec/ trixie-security main Debian\n",
        dump="""APT "";
APT::Update::Post-Invoke-Success:: "touch /tmp/hook";
Acquire "";
Acquire::http::Proxy "http://proxy.example:3128/";
Acquire::http::Proxy::m.example "DIRECT";
Acquire::https::CAInfo "/etc/ssl/own.pem";
Acquire::Check-Valid-Until "false";
Acquire::AllowInsecureRepositories "1";
Dir::State::lists "lists/";
""",
    )
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "auth.conf").write_text("machine m.example login u password p\n")
    keys = tmp_path / "keys.gpg"
    keys.touch()
    mirror = apt.mirror(keyring=keys, etc=etc)
    assert mirror == DebianMirror(
        main="http://m.example/debian/",
        security="http://m.example/sec/",
        keyrings=(keys,),
        options=(
            ("Acquire::http::Proxy", "http://proxy.example:3128/"),
            ("Acquire::http::Proxy::m.example", "DIRECT"),
            ("Acquire::https::CAInfo", "/etc/ssl/own.pem"),
            ("Acquire::Check-Valid-Until", "false"),
            ("Dir::Etc::netrc", str(etc / "auth.conf")),
        ),
    )
    root = tmp_path / "root"
    root.mkdir()
    apt.AptRoot(root, mirror=mirror, suite="trixie", platform=ARM64).update()
    assert (root / "etc/sources/debian.sources").read_text() == (
        "Types: deb\nURIs: http://m.example/debian/\nSuites: trixie trixie-updates\nComponents: main\n"
        f"Signed-By: {keys}\n\n"
        f"Types: deb\nURIs: http://m.example/sec/\nSuites: trixie-security\nComponents: main\nSigned-By: {keys}\n"
    )
    configuration = (root / "apt.conf").read_text()
    assert 'APT::Architecture "arm64";\n' in configuration
    assert 'APT::Update::Error-Mode "any";\n' in configuration
    assert 'Acquire::http::Proxy "http://proxy.example:3128/";\n' in configuration
    assert "Post-Invoke" not in configuration
    assert "AllowInsecure" not in configuration


def test_settings_come_before_the_hosts_archives(monkeypatch, tmp_path):
    fake_apt(tmp_path / "bin", monkeypatch, targets="http://m.example/ubuntu/ noble main Ubuntu\n")
    assert apt.mirror(main="http://own.example/debian").main == "http://own.example/debian"
    assert apt.mirror(main="http://own.example/debian").security is None
    with pytest.raises(BaseUnavailable, match="does not serve Debian") as caught:
        apt.mirror()
    assert "FLOPS_DEBIAN_MIRROR" in caught.value.hint
    with pytest.raises(BaseUnavailable, match="keyring"):
        apt.mirror(main="http://own.example/debian", keyring=tmp_path / "none.gpg")


# --- the file tree ---
def package(name, *entries, control=b""):
    """Each entry: (path, bytes), (path, None) for a directory, (path, "target") for a link, or with a mode behind."""
    contents, made = {}, []
    for path, content, *mode in entries:
        kind = (
            DebEntryKind.FILE
            if isinstance(content, bytes)
            else DebEntryKind.DIRECTORY
            if content is None
            else DebEntryKind.LINK
        )
        made.append(
            DebEntry(
                path=path,
                kind=kind,
                mode=mode[0] if mode else 0o644,
                size=len(content) if kind is DebEntryKind.FILE else 0,
                target=content if kind is DebEntryKind.LINK else "",
            )
        )
        contents[path] = content
    return Package(name=name, control=control, entries=tuple(made), read=lambda entry: iter([contents[entry.path]]))


def tree(*packages):
    """Members of the layer by path, in its order."""
    output = io.BytesIO()
    writer = LayerWriter(output)
    write_tree(packages, "3.11", writer)
    writer.close()
    return members(output.getvalue())


def members(data):
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        return {m.name: (m, archive.extractfile(m).read() if m.isfile() else b"") for m in archive}


def test_old_paths_move_below_usr_and_links_stay_behind():
    assert [merged(path) for path in ("lib/x", "lib64/ld", "bin/sh", "sbin", "library/x", "usr/lib/x")] == [
        "usr/lib/x",
        "usr/lib64/ld",
        "usr/bin/sh",
        "sbin",
        "library/x",
        "usr/lib/x",
    ]
    found = tree(
        package(
            "libc6",
            ("lib", None),
            ("lib/x86_64-linux-gnu/libc.so.6", b"libc"),
            ("lib64/ld.so.2", "/lib/x86_64-linux-gnu/ld.so.2"),
        )
    )
    assert found["usr/lib/x86_64-linux-gnu/libc.so.6"][1] == b"libc"
    links = {name: member.linkname for name, (member, _) in found.items() if member.issym()}
    assert links == {
        "bin": "usr/bin",
        "lib": "usr/lib",
        "lib64": "usr/lib64",
        "sbin": "usr/sbin",
        "usr/lib64/ld.so.2": "/lib/x86_64-linux-gnu/ld.so.2",
        "usr/bin/python3": "python3.11",
        "usr/lib/ssl/cert.pem": "/etc/ssl/certs/ca-certificates.crt",
        "usr/lib/ssl/certs": "/etc/ssl/certs",
    }
    assert "lib64" not in tree(package("libc6", ("lib/ld-linux-aarch64.so.1", b"")))


def test_what_people_and_shells_need_is_left_out_and_licences_are_kept():
    kept = {"usr/share/doc/a/copyright", "usr/share/zoneinfo/Europe/Berlin", "usr/lib/os-release", "etc/services"}
    dropped = {
        "usr/share/doc/a/changelog.gz",
        "usr/share/doc/a/examples/copyright/x",
        "usr/share/man/man1/x.1.gz",
        "usr/share/locale/de/LC_MESSAGES/x.mo",
        "usr/share/zoneinfo/right/Europe/Berlin",
        "usr/sbin/update-ca-certificates",
        "etc/cron.daily/x",
        "lib/systemd/system/x",
        "var/lib/dpkg/info/x",
    }
    found = tree(package("a", *((path, b"") for path in sorted(kept | dropped))))
    assert kept <= found.keys()
    assert not dropped & found.keys()


def test_modes_are_canonical_and_what_no_package_brings_is_made():
    found = tree(
        package(
            "a",
            ("tmp", None, 0o700),
            ("usr/bin/passwd", b"", 0o4755),
            ("etc/secret", b"", 0o600),
            ("var/local", None, 0o2775),
            control=b"Package: a\n",
        )
    )
    modes = {name: (member.mode, member.uid) for name, (member, _) in found.items()}
    assert modes["usr/bin/passwd"] == (0o755, 0)
    assert modes["etc/secret"] == (0o644, 0)
    assert modes["var/local"] == (0o755, 0)
    assert modes["tmp"] == modes["var/tmp"] == (0o1777, 0)
    assert modes["root"] == (0o700, 0)
    assert modes["home/flops"] == (0o755, 65532)
    assert b"flops:x:65532:65532:flops:/home/flops:" in found["etc/passwd"][1]
    assert b"flops:x:65532:\n" in found["etc/group"][1]
    assert found["var/lib/dpkg/status.d/a"][1] == b"Package: a\n"
    assert {member.mtime for member, _ in found.values()} == {0}
    assert list(found) == sorted(found)


def test_certificates_are_joined_in_c_order_each_with_its_newline():
    where = "usr/share/ca-certificates/mozilla/"
    found = tree(
        package("ca-certificates", (where + "b.crt", b"B"), (where + "a.crt", b"a\n"), (where + "Z.crt", b"Z\n"))
    )
    assert found["etc/ssl/certs/ca-certificates.crt"][1] == b"Z\na\nB\n"


def test_two_packages_may_agree_on_a_path_and_not_differ():
    same = [package(name, ("usr/share/x", b"1"), ("usr/y", "x"), ("usr/share", None)) for name in ("a", "b")]
    assert tree(*same)["usr/share/x"][1] == b"1"
    for other in (("usr/share/x", b"2"), ("usr/share/x", "target"), ("usr/share/x", b"12")):
        with pytest.raises(LayerConflict, match="a and b both bring /usr/share/x"):
            tree(package("a", ("usr/share/x", b"1")), package("b", other))


def test_every_suites_list_can_be_read_and_names_its_python():
    suites = [Suite.read(name) for name in SUITES]
    assert [(s.name, s.minor, s.glibc) for s in suites] == [("bookworm", "3.11", (2, 36)), ("trixie", "3.13", (2, 41))]
    for suite in suites:
        assert f"python{suite.minor}-minimal" in suite.wanted
        assert not suite.left_out & set(suite.wanted)


# --- the whole, with a stand-in for apt ---
APT = """#!{python}
import json, os, shutil, sys
from pathlib import Path
state = Path("{state}")
words = sys.argv[1:]
with (state / "calls").open("a") as log:
    log.write(json.dumps(words) + "\\n")
if (state / "down").exists() and "update" in words:
    sys.exit("E: Failed to fetch http://m.example/InRelease  Connection refused")
config = Path(os.environ["APT_CONFIG"]).read_text()
arch = "arm64" if 'APT::Architecture "arm64"' in config else "amd64"
debs = json.loads((state / "debs.json").read_text())[arch]
if "install" in words:
    for deb in debs:
        print("'http://m.example/x' {{name}}_{{version}}_{{arch}}.deb {{size}} SHA256:{{sha256}}".format(**deb))
elif "download" in words:
    for deb in debs:
        if deb["name"] + "=" + deb["version"] in words:
            shutil.copy(deb["path"], "{{name}}_{{version}}_{{arch}}.deb".format(**deb))
"""


class Ours(Interpreter):
    def command(self, arguments):
        return [sys.executable, *map(str, arguments)]

    @property
    def home(self):
        return Path(sys.base_prefix)


def make_deb(directory, name, version, arch, files):
    def tar(entries):
        output = io.BytesIO()
        with tarfile.open(fileobj=output, mode="w") as archive:
            for path, data in entries.items():
                info = tarfile.TarInfo(path)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return lzma.compress(output.getvalue())

    control = tar({"./control": f"Package: {name}\nVersion: {version}\nArchitecture: {arch}\n".encode()})
    data = b"!<arch>\n"
    for member, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", control), ("data.tar.xz", tar(files))):
        data += f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        data += b"\n" * (len(content) % 2)
    path = directory / f"{name}_{version}_{arch}.deb"
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    return {"name": name, "version": version, "arch": arch, "size": len(data), "sha256": digest, "path": str(path)}


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A mirror of two packages a platform, behind an `apt-get` of ours; gives its directory."""
    state = tmp_path / "mirror"
    state.mkdir()
    common = make_deb(state, "tzdata", "2026f-1", "all", {"./usr/share/zoneinfo/UTC": b"TZif"})
    left_out = make_deb(state, "dpkg", "1.21", "amd64", {"./usr/bin/dpkg": b""})
    debs = {}
    for platform in Platform:
        python = make_deb(
            state,
            f"python{MINOR}-minimal",
            f"{MINOR}.2-6",
            platform.architecture,
            {
                f"./usr/bin/python{MINOR}": platform.machine.encode(),
                f"./usr/lib/python{MINOR}/os.py": b"x = 1\n",
                f"./usr/lib/python{MINOR}/_machine.py": f"m = {platform.machine!r}\n".encode(),
            },
        )
        debs[platform.architecture] = [common, python, left_out]
    (state / "debs.json").write_text(json.dumps(debs))
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, text in (("apt-get", APT.format(python=sys.executable, state=state)), ("apt-config", "#!/bin/sh\n")):
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    interpreter = Ours(root=Path("/"), minor=MINOR, program="", loader="", libraries=())
    monkeypatch.setattr(DebianBase, "interpreter", lambda self: interpreter)
    return state


def base(tmp_path, *, cache="cache", **options):
    suite = Suite(
        name="bookworm",
        version=1,
        python=f"{MINOR}.2",
        glibc=(2, 36),
        wanted=("tzdata", f"python{MINOR}-minimal"),
        left_out=frozenset({"dpkg"}),
    )
    settings = Settings(debian_mirror="http://m.example/debian")
    return DebianBase(
        suite, cache_dir=tmp_path / cache, blobs=BlobStore(tmp_path / cache), settings=settings, **options
    )


def calls(archive):
    """What was asked of apt since the last time."""
    log = archive / "calls"
    words = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    log.unlink(missing_ok=True)
    return sorted(next(word for word in line if word in ("update", "install", "download")) for line in words)


def test_a_base_is_made_for_both_platforms_and_remembered(tmp_path, archive):
    made = base(tmp_path).prepare([AMD64, ARM64])
    assert calls(archive) == ["download"] * 2 + ["install"] * 2 + ["update"] * 2
    for platform, one in made.items():
        assert (one.python, one.minor, one.interpreter) == (f"{MINOR}.2", MINOR, f"/usr/bin/python{MINOR}")
        assert [package.name for package in one.packages] == [f"python{MINOR}-minimal", "tzdata"]
        tree_, bytecode = (members(BlobStore(tmp_path / "cache").read(layer.digest)) for layer in one.layers)
        assert tree_[f"usr/bin/python{MINOR}"][1] == platform.machine.encode()
        assert "usr/bin/dpkg" not in tree_
        tag = MINOR.replace(".", "")
        machine = bytecode[f"usr/lib/python{MINOR}/__pycache__/_machine.cpython-{tag}.pyc"][1]
        assert platform.machine.encode() in machine
    assert made[AMD64].lock != made[ARM64].lock
    (archive / "down").touch()
    assert base(tmp_path).prepare([AMD64, ARM64]) == made
    assert calls(archive) == []


def test_another_cache_gives_the_same_digests(tmp_path, archive, monkeypatch):
    first = base(tmp_path).prepare([AMD64])
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    mask = os.umask(0o077)
    try:
        second = base(tmp_path, cache="other").prepare([ARM64, AMD64])
    finally:
        os.umask(mask)
    assert second[AMD64] == first[AMD64]


def test_a_layer_that_was_lost_is_made_again_without_the_mirror(tmp_path, archive):
    first = base(tmp_path).prepare([AMD64])
    (archive / "down").touch()
    calls(archive)
    store = BlobStore(tmp_path / "cache")
    for layer in first[AMD64].layers:
        store.path(layer.digest).unlink()
    assert base(tmp_path).prepare([AMD64]) == first
    assert calls(archive) == []
    assert all(store.has(layer.digest) for layer in first[AMD64].layers)


def test_another_machine_takes_a_recorded_base_without_a_mirror_and_without_an_interpreter(
    tmp_path, archive, monkeypatch
):
    with EmbeddedRegistry(tmp_path / "registry") as server:

        def machine(name):
            client = stack.enter_context(RegistryClient(server.registry))
            shared = SharedCache(client, "flops/cache", Silent())
            stack.callback(shared.close)
            return shared, {"cache": name, "shared": shared}

        with ExitStack() as stack:
            shared, options = machine("first")
            first = base(tmp_path, **options).prepare([ARM64])
            shared.wait()
            calls(archive)
            (archive / "down").touch()
            monkeypatch.setattr(DebianBase, "interpreter", lambda _self: pytest.fail("nothing is to be compiled"))
            _, options = machine("second")
            second = base(tmp_path, **options).prepare([ARM64])
            assert calls(archive) == []
        assert second[ARM64].lock == first[ARM64].lock
        assert [layer.digest for layer in second[ARM64].layers] == [layer.digest for layer in first[ARM64].layers]
        assert not (tmp_path / "second" / "blobs").exists()


class Warnings(Silent):
    def __init__(self):
        self.messages = []

    def warning(self, stage, message, *, hint=""):
        self.messages.append(message)


def make_old(tmp_path):
    for path in (tmp_path / "cache" / "bases" / "sets").iterdir():
        document = json.loads(path.read_text())
        path.write_text(json.dumps(document | {"created": time.time() - LIFETIME - 60}))


def test_a_package_set_is_asked_anew_after_a_week_and_with_upgrade(tmp_path, archive):
    first = base(tmp_path).prepare([AMD64])
    calls(archive)
    make_old(tmp_path)
    assert base(tmp_path).prepare([AMD64]) == first
    assert calls(archive) == ["install", "update"]
    debs = json.loads((archive / "debs.json").read_text())
    debs["amd64"][0] = make_deb(archive, "tzdata", "2026g-1", "all", {"./usr/share/zoneinfo/UTC": b"new"})
    (archive / "debs.json").write_text(json.dumps(debs))
    assert base(tmp_path).prepare([AMD64]) == first
    newer = base(tmp_path, upgrade=True).prepare([AMD64])
    assert {package.version for package in newer[AMD64].packages} == {f"{MINOR}.2-6", "2026g-1"}
    assert newer[AMD64].lock != first[AMD64].lock


def test_an_old_set_helps_while_the_mirror_is_down_and_that_is_said(tmp_path, archive):
    first = base(tmp_path).prepare([AMD64])
    make_old(tmp_path)
    (archive / "down").touch()
    reporter = Warnings()
    assert base(tmp_path, reporter=reporter).prepare([AMD64]) == first
    assert any("older than a week" in message and "Connection refused" in message for message in reporter.messages)
    with pytest.raises(BaseUnavailable, match="Connection refused"):
        base(tmp_path, upgrade=True).prepare([AMD64])


def test_no_mirror_and_nothing_kept_is_one_clear_error(tmp_path, archive):
    (archive / "down").touch()
    with pytest.raises(
        BaseUnavailable, match=r"can't read Debian's archive for bookworm, linux/a.*Connection refused"
    ) as caught:
        base(tmp_path).prepare([ARM64])
    assert "FLOPS_DEBIAN_MIRROR" in caught.value.hint
    assert not list((tmp_path / "cache" / "bases").glob("apt-*"))


def test_a_package_that_is_not_what_the_index_says_is_refused(tmp_path, archive):
    debs = json.loads((archive / "debs.json").read_text())
    debs["amd64"][0]["sha256"] = "0" * 64
    (archive / "debs.json").write_text(json.dumps(debs))
    with pytest.raises(BaseUnavailable, match="did not fetch tzdata 2026f-1"):
        base(tmp_path).prepare([AMD64])
