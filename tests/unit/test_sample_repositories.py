"""Every folder of tests/repos is an ML repository with what the builder has to say about it; a new one needs no Python.

What `expected.toml` may hold stands in tests/corpus.py.
"""

import pytest
from tests import corpus

from flops.errors import FlopsError


@pytest.mark.parametrize("name", corpus.names())
def test_a_repository_gives_what_it_expects(name, tmp_path):
    expected = corpus.expectation(name)
    assert set(expected) <= corpus.KEYS
    assert expected["about"]
    place = tmp_path / "repository"
    place.mkdir()
    corpus.lay(name, place)
    if "error" in expected:
        with pytest.raises(FlopsError) as caught:
            corpus.build_values(place, tmp_path / "out", expected)
        error = caught.value
        assert error.code == expected["error"], error
        assert corpus.lines(error.findings) == sorted(expected.get("findings", ()))
        assert error.exit_code == expected["exit"]
        assert error.hint
        assert all(finding.hint for finding in error.findings)
        assert expected.get("hint", "") in error.hint
        return
    done, found, asked = corpus.build_values(place, tmp_path / "out", expected)
    assert corpus.lines([*found.notes, *asked.notes]) == sorted(expected.get("notes", []))
    assert [warning.split()[0] for warning in done.warnings] == expected.get("warnings", [])
    assert (found.flavor.value if found.flavor else None) == expected.get("flavor")
    where = "{}:{}".format(*found.load_dataset) if found.load_dataset else None
    assert where == expected.get("load_dataset")
    assert (asked.python.specifier if asked.python else None) == expected.get("python")
    assert asked.complete == expected.get("complete", False)
    entries = [entry.pep508 for entry in asked.entries]
    assert entries == expected["requirements"]
    adjusted = [f"{item.code} {item.package} {item.where}" for item in asked.adjustments]
    assert adjusted == expected.get("adjustments", [])
    assert all(item.reason for item in asked.adjustments)


def test_links_stay_links_and_files_are_whole(tmp_path):
    place = tmp_path / "repository"
    place.mkdir()
    corpus.lay("links-inside", place)
    done, _, _ = corpus.build_values(place, tmp_path / "out", {})
    links = {file.path: file.link for file in done.files if file.link is not None}
    assert links == {"data/current": "v2", "shared.py": "lib/shared.py", "lib/up": "../data"}
    assert (done.path / "data/current/a.csv").read_text() == "1\n"


def test_there_are_samples():
    assert len(corpus.names()) > 130
    of_dependencies = [name for name in corpus.names() if corpus.speaks_of_dependencies(name)]
    assert len(of_dependencies) > 90
