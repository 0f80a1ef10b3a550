"""`flops check --write`: files change as a whole or not at all. The check itself is played."""

import pytest

from flops.cli.write import check_and_write
from flops.errors import Adjustment, NoWheel, PackageNotFound, UsageError
from flops.platforms import Platform
from flops.recipe import Recipe
from flops.repository.source import parse_source
from flops.request import Request

TEXT = "numpy==1.0  # arrays\nscipy==1.0\n"


class Report:
    def __init__(self, *adjustments):
        self.adjustments = adjustments


def change(package, after, line, code="PIN_RELAXED", path="requirements.txt"):
    return Adjustment(code=code, package=package, before="==1.0", after=after, path=path, line=line, reason="r")


def failing(*repairs):
    error = PackageNotFound("m")
    error.repairs = repairs
    return error


@pytest.fixture
def root(tmp_path):
    (tmp_path / "requirements.txt").write_text(TEXT)
    (tmp_path / "requirements.txt").chmod(0o640)
    (tmp_path / "model_manager.py").write_text("")
    return tmp_path


def write(root, *answers, ref=None, subdir=""):
    """Each check gives the next answer; the files that it saw are kept."""
    seen, left = [], list(answers)

    def check():
        seen.append((root / "requirements.txt").read_text())
        answer = left.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    request = Request(source=parse_source(str(root)), platforms=tuple(Platform), recipe=Recipe(subdir=subdir), ref=ref)
    done = check_and_write(request, check)
    assert left == []
    return done, seen


def test_repairs_are_written_and_checked_again(root):
    done, seen = write(root, Report(change("numpy", "==1.1", 1)), Report())
    assert (root / "requirements.txt").read_text() == "numpy==1.1  # arrays\nscipy==1.0\n"
    assert seen == [TEXT, "numpy==1.1  # arrays\nscipy==1.0\n"]
    assert "-numpy==1.0  # arrays\n+numpy==1.1  # arrays" in done.patch
    assert (root / "requirements.txt").stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in root.iterdir()) == ["model_manager.py", "requirements.txt"]


def test_what_a_failure_proposes_is_written_then_what_is_told_after_it(root):
    corrected = change("scipy", "scipy2", 2, code="NAME_CORRECTED")
    added = change("pillow", "==9", 3, code="ADDED", path="model_manager.py")
    done, _ = write(root, failing(corrected), Report(added), Report())
    assert (root / "requirements.txt").read_text() == "numpy==1.0  # arrays\nscipy2==1.0\npillow==9\n"
    assert done.left == ()


def test_what_is_imported_is_written_into_a_project_too(root):
    (root / "requirements.txt").write_text("# none\n")
    (root / "pyproject.toml").write_text('[project]\nname = "a"\ndependencies = [\n  "numpy==1.0"\n]\n')
    added = change("pillow", "==9", 3, code="ADDED", path="model_manager.py")
    done, _ = write(root, Report(added), Report())
    assert (root / "pyproject.toml").read_text().endswith('[\n  "numpy==1.0",\n  "pillow==9"\n]\n')
    assert done.left == ()


def test_a_failure_without_a_repair_changes_nothing(root):
    with pytest.raises(PackageNotFound):
        write(root, failing())
    assert (root / "requirements.txt").read_text() == TEXT


@pytest.mark.parametrize("later", [NoWheel("m"), KeyboardInterrupt()])
def test_a_repair_that_fails_is_taken_back(root, later):
    with pytest.raises(type(later)):
        write(root, Report(change("numpy", "==1.1", 1)), later)
    assert (root / "requirements.txt").read_text() == TEXT


def test_a_second_run_has_nothing_to_write(root):
    done, _ = write(root, Report())
    assert (done.patch, done.left) == ("", ())


def test_what_has_no_place_is_told(root):
    lost = change("absent", "==2", 1)
    done, _ = write(root, Report(lost))
    assert done.left == (lost,)
    with pytest.raises(UsageError, match="could not be written"):
        write(root, failing(lost))


def test_an_edit_that_nobody_can_read_is_not_written(root):
    with pytest.raises(Exception, match="is not a requirement"):
        write(root, Report(change("numpy", "==not a version", 1)))
    assert (root / "requirements.txt").read_text() == TEXT


def test_links_are_not_followed(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "more.txt"
    outside.write_text("torch==1.0\n")
    (root / "more.txt").symlink_to(outside)
    done, _ = write(root, Report(change("torch", "==1.1", 1, path="more.txt")))
    assert outside.read_text() == "torch==1.0\n"
    assert len(done.left) == 1


def test_only_a_directory_as_it_lies_there(root):
    with pytest.raises(UsageError, match="directory"):
        write(root, ref="main")
    request = Request(source=parse_source("https://127.0.0.1/acme/digits"), platforms=tuple(Platform), recipe=Recipe())
    with pytest.raises(UsageError, match="directory"):
        check_and_write(request, Report)
    with pytest.raises(UsageError, match="leads out"):
        write(root, subdir="../..")
