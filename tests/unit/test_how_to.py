"""The worked examples of docs/how-to: their own code runs here, and each touches at most two files."""

from __future__ import annotations

import importlib.util
import re
import stat
import sys
from enum import Enum
from pathlib import Path

import pytest

from flops.base import BaseContext, bases
from flops.errors import BaseUnavailable, RequirementsMissing
from flops.formats import requirements
from flops.oci.blobs import BlobStore
from flops.orchestrators import BuilderPhase, Deployment, ManagerContext, start_orchestrator
from flops.platforms import Platform
from flops.progress import Silent
from flops.recipe import Recipe
from flops.repository.source import parse_source
from flops.request import Request
from flops.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/how-to").glob("*.md"))


def files_of(page):
    """The files that an example writes or changes, with the code of each."""
    text = (ROOT / "docs/how-to" / page).read_text()
    return dict(re.findall(r"`(src/[\w/.]+)`[^`\n]*:\n\n```python\n(.*?)```", text, re.DOTALL))


@pytest.fixture
def install(monkeypatch):
    """Loads an example's new module under its own name, as if its file lay there."""

    def load(path, code):
        name = path.removeprefix("src/").removesuffix(".py").replace("/", ".")
        specification = importlib.util.spec_from_loader(name, loader=None)
        module = importlib.util.module_from_spec(specification)
        exec(compile(code, path, "exec"), module.__dict__)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return load


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_an_example_touches_at_most_two_files(page):
    files = files_of(page.name)
    assert 1 <= len(files) <= 2
    new = [path for path in files if not (ROOT / path).exists()]
    assert new, "an example adds something"


def test_dependency_format(install, monkeypatch):
    files = files_of("dependency-format.md")
    module = install(*next(iter(files.items())))
    line = files["src/flops/formats/requirements.py"]
    places = {"FORMATS": requirements.FORMATS, module.__name__.rpartition(".")[2]: module}
    exec(line, places)
    monkeypatch.setattr(requirements, "FORMATS", places["FORMATS"])
    found = requirements.read({"Pipfile.txt": b'numpy = "==1.26.4"\nscipy = "*"\n'})
    assert [entry.pep508 for entry in found.entries] == ["numpy==1.26.4", "scipy"]
    assert [(entry.path, entry.line) for entry in found.entries] == [("Pipfile.txt", 1), ("Pipfile.txt", 2)]
    with pytest.raises(RequirementsMissing):
        requirements.read({})


def test_orchestrator(install, monkeypatch, tmp_path):
    """Its program is a shell script here, which keeps a builder's variables as its state."""
    ((path, code),) = files_of("orchestrator.md").items()
    install(path, code)
    monkeypatch.setattr("pkgutil.iter_modules", lambda _path: [type("Found", (), {"name": "remote"})])
    program = tmp_path / "bin/remote"
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/sh
cd {tmp_path}
case "$1 $2" in
  "start "*) cat > "$2.job" ;;
  "state ") ls *.job 2>/dev/null | sed 's/.job//' ;;
  "state "*) test -e "$2.job" && echo running || echo gone ;;
  "stop "*) rm -f "$2.job" ;;
  "log "*) cat "$2.job" ;;
esac
"""
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    context = ManagerContext(
        settings=Settings(cache_dir=tmp_path, data_dir=tmp_path),
        directory=tmp_path,
        url="http://127.0.0.1:1",
        registry="127.0.0.1:2",
        mirrors=lambda: {"FLOPS_DEBIAN_MIRROR": "http://mirror.example/debian"},
    )
    deployment = Deployment(job="abc123", project="p", url="http://127.0.0.1:1/attempts/1", token="secret")
    with start_orchestrator("remote", context) as orchestrator:
        orchestrator.prepare()
        handle = orchestrator.deploy(deployment)
        assert orchestrator.status("abc123", handle).phase is BuilderPhase.RUNNING
        assert orchestrator.logs("abc123", handle).splitlines() == [
            "FLOPS_DEBIAN_MIRROR=http://mirror.example/debian",
            "FLOPS_JOB_ID=abc123",
            "FLOPS_JOB_URL=http://127.0.0.1:1/attempts/1",
            "FLOPS_JOB_TOKEN=secret",
        ]
        assert list(orchestrator.orphans("abc", known=[])) == ["abc123"]
        assert orchestrator.remove("abc123", handle)
        assert orchestrator.status("abc123", handle).phase is BuilderPhase.GONE


def test_base(install, monkeypatch, tmp_path):
    files = files_of("base.md")
    module = install("src/flops/base/rootfs.py", files["src/flops/base/rootfs.py"])
    places = {**vars(bases), "rootfs_bases": module.rootfs_bases}
    exec(files["src/flops/base/bases.py"], places)
    monkeypatch.setattr(bases, "KINDS", places["KINDS"])
    (tmp_path / "root/linux-amd64/etc").mkdir(parents=True)
    (tmp_path / "root/linux-amd64/etc/os-release").write_text("ID=example\n")
    settings = Settings(cache_dir=tmp_path / "cache", data_dir=tmp_path)

    def opened(base, platform):
        source = parse_source("https://git.example.org/a/b")
        asked = Request(source=source, platforms=(platform,), recipe=Recipe(base=base))
        blobs = BlobStore(tmp_path / "cache")
        return bases.Bases(BaseContext(settings=settings, blobs=blobs, request=asked, reporter=Silent()))

    with opened(f"rootfs:{tmp_path / 'root'}", Platform.LINUX_AMD64) as found:
        (choice,) = found.choices()
        (base,) = found.bases(choice).values()
        assert (choice.provider, choice.version, found.compiler(choice)) == ("rootfs", "3.11.2", None)
        assert [layer.comment for layer in base.layers] == ["root file system"]
    with opened(f"rootfs:{tmp_path / 'root'}", Platform.LINUX_ARM64) as found, pytest.raises(BaseUnavailable):
        found.bases(found.choices()[0])
    with opened(None, Platform.LINUX_AMD64) as found:
        assert {choice.provider for choice in found.choices()} == {"debian"}


def test_actor_role(install, capsys, monkeypatch):
    files = files_of("actor-role.md")
    places: dict[str, type[Enum]] = {"Enum": Enum}
    exec(files["src/flops/actors.py"], places)
    role = places["Actor"]["VALIDATOR"]
    from flops.actors import main_file

    (main,) = main_file(role)
    install("src/flops_actor/validator.py", files["src/flops_actor/validator.py"])
    monkeypatch.setattr(sys, "argv", ["main.py", "PROJECT"])
    with pytest.raises(SystemExit) as ended:
        exec(compile(main.data, main.path, "exec"), {"__name__": "__main__"})
    assert ended.value.code == 0
    assert capsys.readouterr().out == "validating PROJECT\n"
