"""Every folder of tests/repos is an ML repository with what the builder has to say about it; a new one needs no Python.

`expected.toml`: `about`; `like` (another folder to start from), `remove`, `make` (path to text), `repeat` (generated files),
`link` (path to target), `allow_secrets`; then what is expected: `error` (a code), `exit`, `hint`, `findings`, `notes`, `warnings`,
`flavor`, `load_dataset`, `python`, `requirements`, `adjustments`. What is not named is not compared, but errors, findings and notes are.
"""

import shutil
import tomllib
from pathlib import Path

import pytest

from flops.builder import requirements, structure
from flops.builder.checkout import checkout
from flops.builder.source import parse_source
from flops.errors import FlopsError

REPOS = Path(__file__).parents[1] / "repos"
KEYS = {
    "about",
    "like",
    "remove",
    "make",
    "repeat",
    "link",
    "allow_secrets",
    "error",
    "exit",
    "hint",
    "findings",
    "notes",
} | {
    "warnings",
    "flavor",
    "load_dataset",
    "python",
    "requirements",
    "adjustments",
}


def expectation(name):
    return tomllib.loads((REPOS / name / "expected.toml").read_text())


def lay(name, place):
    """Write the repository of a folder, and of the folders that it is like, into `place`."""
    expected = expectation(name)
    if "like" in expected:
        lay(expected["like"], place)
    for path in expected.get("remove", ()):
        (place / path).unlink()
    for file in (REPOS / name).rglob("*"):
        if file.is_file() and file.name != "expected.toml" and "__pycache__" not in file.parts:
            target = place / file.relative_to(REPOS / name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    made = {path: text.encode() for path, text in expected.get("make", {}).items()}
    for item in expected.get("repeat", ()):
        made[item["path"]] = (item.get("start", "") + item["text"] * item["times"] + item.get("end", "")).encode()
    for path, data in made.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(data)
    for path, target in expected.get("link", {}).items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).symlink_to(target)


def build_values(place, destination, expected):
    """What a build does with a repository before it locks."""
    done = checkout(parse_source(str(place)), destination, allow_secrets=expected.get("allow_secrets", ()))
    found = structure.check(done.path, done.files)
    structure.require(found)
    asked = requirements.read(done.read(requirements.is_candidate))
    return done, found, requirements.with_data_packages(asked, found)


def lines(findings):
    return sorted(f"{finding.where} {finding.code}" for finding in findings)


@pytest.mark.parametrize("name", sorted(path.name for path in REPOS.iterdir() if (path / "expected.toml").exists()))
def test_a_repository_gives_what_it_expects(name, tmp_path):
    expected = expectation(name)
    assert set(expected) <= KEYS
    assert expected["about"]
    place = tmp_path / "repository"
    place.mkdir()
    lay(name, place)
    if "error" in expected:
        with pytest.raises(FlopsError) as caught:
            build_values(place, tmp_path / "out", expected)
        error = caught.value
        assert error.code == expected["error"], error
        assert lines(error.findings) == sorted(expected.get("findings", ()))
        assert error.exit_code == expected.get("exit", error.exit_code)
        assert error.hint
        assert all(finding.hint for finding in error.findings)
        assert expected.get("hint", "") in error.hint
        return
    done, found, asked = build_values(place, tmp_path / "out", expected)
    assert lines([*found.notes, *asked.notes]) == sorted(expected.get("notes", lines(asked.notes)))
    assert [warning.split()[0] for warning in done.warnings] == expected.get("warnings", [])
    assert (found.flavor.value if found.flavor else None) == expected.get("flavor")
    assert found.load_dataset_where == expected.get("load_dataset", "")
    assert found.uses_load_dataset == ("load_dataset" in expected)
    assert (asked.python.specifier if asked.python else None) == expected.get("python")
    entries = [entry.pep508 for entry in asked.entries]
    assert entries == expected.get("requirements", entries)
    adjusted = [f"{item.code} {item.package} {item.where}" for item in asked.adjustments]
    assert adjusted == expected.get("adjustments", adjusted)
    assert all(item.reason for item in asked.adjustments)


def test_links_stay_links_and_files_are_whole(tmp_path):
    place = tmp_path / "repository"
    place.mkdir()
    lay("links-inside", place)
    done, _, _ = build_values(place, tmp_path / "out", {})
    links = {file.path: file.link for file in done.files if file.link is not None}
    assert links == {"data/current": "v2", "shared.py": "lib/shared.py", "lib/up": "../data"}
    assert (done.path / "data/current/a.csv").read_text() == "1\n"


def test_there_are_samples():
    assert len(list(REPOS.iterdir())) > 25
