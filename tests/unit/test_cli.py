"""The command line: what it offers, what it prints where, how it ends; foreign text is shown as text."""

import contextlib
import dataclasses
import io
import json
import math
import re
import subprocess
import sys

import pytest
from rich.console import Console

import flops
from flops import errors
from flops.actors import Actor
from flops.cli import build as build_command
from flops.cli import check as check_command
from flops.cli import main as command_line
from flops.cli import options
from flops.cli.render import (
    BarReporter,
    LineReporter,
    adjustment_table,
    error_lines,
    one_line,
    plain,
    print_json,
    reporter,
)
from flops.errors import Adjustment, Cancelled, Finding, FlopsError, StructureError, UnknownPlatform, UsageError
from flops.platforms import Platform
from flops.progress import Stage
from flops.publishing.delivery import Summary
from flops.publishing.local_targets import ArchiveTarget, LayoutTarget
from flops.publishing.registry_target import RegistryTarget
from flops.recipe import Accelerator, Compression, Flavor, Policy
from flops.settings import Settings
from flops.use_cases.result import ActorImage, Amount, Preflight, PythonUsed, Rebuild, Report, Result

NONE = Amount(count=0, bytes=0)
ESCAPE = "\x1b]0;owned\x07\x1b[31mred\x1b[0m\x9b2J\u202efdp.exe"
HOSTILE = f"a{ESCAPE}[bold]b[/bold]\nerror[FORGED]: line"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """No settings of whoever runs these tests; a home of its own; no colours."""
    for name in ("FLOPS_REGISTRY", "FLOPS_REGISTRY_PULL", "FLOPS_WORKERS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FLOPS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("FLOPS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    """Run the command line in this process; code, stdout, stderr."""

    def call(*words):
        code = command_line.main(words)
        return (code, *capsys.readouterr())

    return call


def no_escapes(text):
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text), repr(text)


# --- help -------------------------------------------------------------------------------------------------------------
def test_help_lists_the_commands(run):
    for words in (["--help"], []):
        code, out, err = run(*words)
        assert (code, err) == (0, "")
        for command in ("build", "check", "try", "demo"):
            assert re.search(rf"^  {command}\s", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (
            "build",
            (
                "--ref --subdir --platform --flavor --registry --output --load --python --policy --accelerator"
                " --compression --base-image --upgrade --force --no-verify --json --quiet"
            ),
        ),
        ("check", "--ref --subdir --platform --python --policy --write --json --quiet"),
        ("try", "--data --learners --rounds --ref --subdir --memory --tmp --processes --json --quiet"),
        ("demo", "--json --quiet"),
    ],
)
def test_help_of_a_command_names_every_option(run, command, wanted):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    for option in wanted.split():
        assert option in out


def test_version(run):
    assert run("--version") == (0, f"flops {flops.__version__}\n", "")


def test_the_program_starts_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "flops.cli.main", "build", "--frobnicate", "--json"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "USAGE"


# --- usage ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "part", "hint"),
    [
        (["build", ".", "--frobnicate"], "--frobnicate", "flops build --help"),
        (["build"], "SOURCE", "flops build --help"),
        (["build", ".", "--policy", "lenient"], "lenient", "flops build --help"),
        (["frobnicate"], "frobnicate", "flops --help"),
        (["try", ".", "--data", ".", "--learners", "0"], "--learners", "flops try --help"),
        (["try", ".", "--data", ".", "--memory", "much"], "--memory 'much'", "2GB"),
        (["try", ".", "--data", ".", "--tmp", "1kB"], "--tmp '1kB'", "2GB"),
        (["build", ".", "--python", "four"], "four", "3.11"),
        (["build", ".", "--platform", "windows"], "windows", "linux/amd64"),
        (["build", ".", "--platform", ","], "no platform", "linux/amd64"),
        (["build", ".", "--load", "--output", "x"], "exclude", "each place"),
    ],
)
def test_usage_errors(run, words, part, hint):
    code, out, err = run(*words, "--json")
    assert code == 2
    error = json.loads(out)["error"]
    assert error["code"] in ("USAGE", "UNKNOWN_PLATFORM")
    assert part in error["message"]
    assert hint in error["hint"]
    assert f"error[{error['code']}]: {error['message']}" in err
    code, out, _ = run(*words)
    assert (code, out) == (2, "")


# --- how it ends ------------------------------------------------------------------------------------------------------
def concrete():
    """Every class of failure there is."""
    found, left = [], [FlopsError]
    while left:
        one = left.pop()
        found.append(one)
        left += one.__subclasses__()
    return [one for one in found if one.__module__ == errors.__name__ and one is not FlopsError]


@pytest.mark.parametrize("kind", concrete(), ids=lambda kind: kind.__name__)
def test_every_failure_has_its_exit_code(run, monkeypatch, kind):
    def fail(*_words, **_options):
        raise kind("what happened", hint="what to do")

    monkeypatch.setattr(build_command, "build", fail)
    code, out, err = run("build", ".", "--json")
    assert code == kind.exit_code
    assert json.loads(out) == {
        "error": {"code": kind.code, "message": "what happened", "hint": "what to do", "findings": []}
    }
    assert f"error[{kind.code}]: what happened\nhint: what to do\n" in err


def test_codes_are_unique_and_exit_codes_are_those_of_the_contract():
    codes = [kind.code for kind in concrete()]
    assert len(codes) == len(set(codes))
    assert {kind.exit_code for kind in concrete()} == {2, 3, 4, 5, 6, 7, 8, 9, 70, 130}


def test_an_interrupt(run, monkeypatch):
    def interrupt(*_words, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_command, "build", interrupt)
    code, out, err = run("build", ".", "--json")
    assert code == 130
    assert json.loads(out)["error"]["code"] == "CANCELLED"
    assert "Traceback" not in err
    assert "error[CANCELLED]: interrupted" in err


def test_a_bug_of_ours_is_told_as_one(run, monkeypatch):
    def fall(*_words, **_options):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(build_command, "build", fall)
    code, out, err = run("build", ".", "--json")
    assert code == 70
    error = json.loads(out)["error"]
    assert error["code"] == "INTERNAL"
    assert "ZeroDivisionError: by zero" in error["message"]
    assert "report" in error["hint"]
    assert "Traceback" in err


def test_findings_come_with_place_and_hint(run, monkeypatch):
    findings = (
        Finding(
            path="model_manager.py", line=3, code="METHOD_MISSING", message="get_model is missing", hint="write it"
        ),
        Finding(path="data_manager.py", line=0, code="CLASS_MISSING", message="there is no class"),
    )

    def fail(*_words, **_options):
        raise StructureError("two things are wrong", findings=findings)

    monkeypatch.setattr(check_command, "check", fail)
    code, out, err = run("check", ".", "--json")
    assert code == 4
    assert json.loads(out)["error"]["findings"] == [one.to_json() for one in findings]
    assert "error[METHOD_MISSING]: get_model is missing\n  --> model_manager.py:3\nhint: write it\n" in err
    assert "error[CLASS_MISSING]: there is no class\n  --> data_manager.py\n" in err
    assert err.rstrip().endswith("error[STRUCTURE]: two things are wrong")


# --- results ----------------------------------------------------------------------------------------------------------
SUMMARY = Summary(digest="sha256:" + "a" * 64, layers=31, bytes=240_000_000, uncompressed_bytes=780_000_000)
RESULT = Result(
    repository="https://git.example/acme/digits",
    commit="c" * 40,
    recipe="sha256:" + "b" * 64,
    registry="127.0.0.1:5073",
    images={
        actor: ActorImage(
            reference=f"127.0.0.1:5073/acme/digits/{actor.value}:{'c' * 40}",
            digest="sha256:" + "d" * 64,
            platforms={Platform.LINUX_AMD64: SUMMARY},
        )
        for actor in Actor
    },
    python=PythonUsed(requested="3.10.14", used="3.11.2", provider="debian"),
    adjustments=(
        Adjustment(
            code="PIN_RELAXED",
            package="psutil",
            before="==5.9.8",
            after="==6.0.0",
            path="conda.yaml",
            line=12,
            reason="no wheel",
            platform="linux/arm64",
        ),
    ),
    findings=(),
    seconds={"clone": 0.1, "total": 9.25},
    bytes={"downloaded": 1_000_000, "uploaded": 2_000_000, "reused": 0},
)


def test_a_result_as_json_is_all_that_stands_on_stdout(run, monkeypatch):
    def build(_request, _target, *, settings, reporter):
        with reporter.stage(Stage.CLONE, "somewhere"):
            reporter.adjusted(RESULT.adjustments[0])
        return RESULT

    monkeypatch.setattr(build_command, "build", build)
    code, out, err = run("build", ".", "--json")
    assert code == 0
    assert json.loads(out) == RESULT.to_json()
    assert "clone: somewhere" in err
    assert "adjusted[PIN_RELAXED]: psutil ==5.9.8 -> ==6.0.0 on linux/arm64 (conda.yaml:12): no wheel" in err
    assert run("build", ".", "--json", "--quiet") == (0, out, "")


REPORT = Report(
    repository="local/digits",
    commit="c" * 40,
    recipe=RESULT.recipe,
    python=RESULT.python,
    adjustments=RESULT.adjustments,
    findings=(),
    locks={},
    seconds={"total": 1.0},
    preflight=Preflight(
        sizes={},
        accelerator="cpu",
        cuda={},
        cpu_refusal="",
        rebuild=Rebuild(fetch=NONE, make=NONE, push=NONE, keep=NONE, registry=None, runtime=True),
    ),
)


class Screen(io.StringIO):
    """One terminal that has stdout and stderr both."""

    def isatty(self):
        return True


@contextlib.contextmanager
def on_a_terminal(monkeypatch, kind="xterm"):
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setenv("COLUMNS", "200")
    with contextlib.redirect_stdout(Screen()) as screen, contextlib.redirect_stderr(screen):
        yield screen


NOTE = Finding(path="conda.yaml", line=6, code="PIP_DROPPED", message="pip is left out")


@pytest.mark.parametrize("words", [(), ("--quiet",)])
def test_a_terminal_tells_adjustments_and_notes_once(monkeypatch, words):
    def checked(_request, *, reporter, **_options):
        reporter.adjusted(RESULT.adjustments[0])
        reporter.finding(NOTE)
        return dataclasses.replace(REPORT, findings=(NOTE,))

    def built(_request, _target, *, settings, reporter):
        reporter.adjusted(RESULT.adjustments[0])
        return RESULT

    monkeypatch.setattr(check_command, "check", checked)
    monkeypatch.setattr(build_command, "build", built)
    with on_a_terminal(monkeypatch) as screen:
        assert command_line.main(["check", ".", *words]) == 0
    assert (screen.getvalue().count("psutil"), screen.getvalue().count("pip is left out")) == (1, 1)
    assert "finding[" not in screen.getvalue()
    with on_a_terminal(monkeypatch) as screen:
        assert command_line.main(["build", ".", *words]) == 0
    assert screen.getvalue().count("psutil") == 1


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch):
    with (
        on_a_terminal(monkeypatch, "dumb") as screen,
        reporter(quiet=False) as lines,
        lines.stage(Stage.CLONE, "somewhere"),
    ):
        assert screen.getvalue() == "clone: somewhere\n", "told at once, not at the end"


@pytest.mark.parametrize("width", [60, 80])
def test_bars_keep_to_a_line_each_and_cut_words_not_numbers(width):
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=True, color_system=None)
    with BarReporter(console) as bars, bars.stage(Stage.CLONE, "/home/somebody/repositories/of-some-length\nsecond"):
        bars.progress(Stage.CLONE, done=12_300_000, total=54_600_000)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue()).rstrip().splitlines()[-1]
    assert last.split()[:2] == ["✓", "clone"]
    assert "…" in last
    assert last.endswith(("MB 0:00:00", "bytes 0:00:00"))


def test_a_result_for_people(run, monkeypatch):
    monkeypatch.setattr(build_command, "build", lambda *_words, **_options: RESULT)
    code, out, err = run("build", ".", "--quiet")
    assert (code, err) == (0, "")
    for part in (
        "learner",
        "linux/amd64",
        "31",
        "240.0 MB",
        "780.0 MB",
        "psutil",
        "conda.yaml:12",
        "total 9.2",
        "3.11.2",
    ):
        assert part in out
    for reference in RESULT.references:
        assert reference in out
    assert f"skopeo copy --all oci:{LayoutTarget(Settings.read().data_dir / 'images').root}:" in out


def test_a_report_for_people(run, monkeypatch):
    monkeypatch.setattr(check_command, "check", lambda *_words, **_options: REPORT)
    code, out, _ = run("check", ".")
    assert code == 0
    assert "psutil" in out
    assert "can be built" in out


# --- requests and places ----------------------------------------------------------------------------------------------
def test_options_become_a_request(run, monkeypatch):
    seen = []

    def build(request, target, **_):
        seen.append((request, target))
        return RESULT

    monkeypatch.setattr(build_command, "build", build)
    words = "--ref v1 --subdir /ml/ --platform linux/arm64 --platform linux/amd64 --flavor keras --python 3.11 --policy strict"
    more = "--accelerator cuda --compression zstd --base-image x/y:1 --upgrade --force --no-verify --output images.tar"
    code, _, err = run("build", ".", *words.split(), *more.split(), "--json")
    assert code == 0, err
    ((request, target),) = seen
    assert request.ref == "v1"
    assert request.platforms == (Platform.LINUX_AMD64, Platform.LINUX_ARM64)
    assert (request.upgrade, request.force, request.verify) == (True, True, False)
    recipe = request.recipe
    assert (recipe.flavor, recipe.python, recipe.policy) == (Flavor.KERAS, "3.11", Policy.STRICT)
    assert (recipe.accelerator, recipe.compression) == (Accelerator.CUDA, Compression.ZSTD)
    assert (recipe.base, recipe.subdir) == ("x/y:1", "ml")
    assert isinstance(target, ArchiveTarget)


def test_the_platform_is_this_machines_by_default(monkeypatch):
    assert options.request(".").platforms == (Platform.host(),)
    monkeypatch.setattr(Platform, "host", classmethod(lambda _cls: None))
    with pytest.raises(UsageError, match="this machine's platform") as caught:
        options.request(".")
    assert "--platform" in caught.value.hint
    with pytest.raises(UnknownPlatform):
        options.request(".", platforms=["linux/s390x"])


def test_where_images_go(tmp_path, monkeypatch):
    choose = build_command.choose_target
    nothing = {"registry": None, "output": None, "load": False}
    for words, root in (
        (nothing, tmp_path / "data" / "images"),
        ({**nothing, "output": tmp_path / "x"}, tmp_path / "x"),
    ):
        layout = choose(Settings.read(), **words)
        assert isinstance(layout, LayoutTarget)
        assert layout.root == root
    archive = choose(Settings.read(), **{**nothing, "output": tmp_path / "x.tar"})
    assert isinstance(archive, ArchiveTarget)
    assert archive.path == tmp_path / "x.tar"
    monkeypatch.setenv("FLOPS_REGISTRY", "http://registry.example/flops")
    monkeypatch.setenv("FLOPS_REGISTRY_PULL", "registry.nodes:5073")
    target = choose(Settings.read(), **nothing)
    assert isinstance(target, RegistryTarget)
    assert target.client.registry.url == "http://registry.example"
    assert target.reference("acme/digits", Actor.LEARNER, "x").startswith("registry.nodes:5073/")
    named = choose(Settings.read(), **{**nothing, "registry": "127.0.0.1:5000"})
    assert isinstance(named, RegistryTarget)
    assert named.client.registry.host == "127.0.0.1:5000"
    for one in (target, named):
        one.client.close()


# --- foreign text -----------------------------------------------------------------------------------------------------
def printed(*renderables):
    output = io.StringIO()
    console = Console(file=output, width=200, soft_wrap=True, highlight=False, force_terminal=False)
    for one in renderables:
        console.print(one)
    return output.getvalue()


def test_plain_shows_what_terminals_would_obey():
    assert plain("a\x1b[31mb\x07\x9b\u202e\u200b\ttab\nline") == "a\\x1b[31mb\\x07\\x9b\\u202e\\u200b\\ttab\nline"
    assert plain("Grüße, 数据, 🙂 [bold]") == "Grüße, 数据, 🙂 [bold]"
    assert one_line("a\nb") == "a\\nb"
    assert plain("e\u0302\u0301 \u05d1\u05bc\u05b8\u0591 Z" + "\u0300" * 7) == (
        "e\u0302\u0301 \u05d1\u05bc\u05b8\u0591 Z" + "\u0300" * 6 + "\\u0300"
    )


def test_hostile_text_in_a_failure():
    finding = Finding(path=HOSTILE, line=1, code="X", message=f"m{ESCAPE}", hint=f"h{ESCAPE}")
    text = printed(*error_lines(StructureError(f"w{ESCAPE}[link=x]y", hint=f"t{ESCAPE}\nsecond", findings=[finding])))
    no_escapes(text)
    assert "\\x1b[31mred" in text
    assert "[bold]b[/bold]" in text, "rich's own markup is text too"
    assert "[link=x]y" in text
    assert not re.search(r"^error\[FORGED\]", text, re.MULTILINE)


def test_hostile_text_in_an_adjustment_a_finding_and_a_warning():
    adjustment = Adjustment(
        code="REMOVED", package=HOSTILE, before=f"=={ESCAPE}", after="", path=HOSTILE, line=0, reason=f"r{ESCAPE}"
    )
    output = io.StringIO()
    lines = LineReporter(Console(file=output, width=200, soft_wrap=True, highlight=False))
    lines.adjusted(adjustment)
    lines.finding(Finding(path=HOSTILE, line=2, code="N", message=ESCAPE, hint=ESCAPE))
    lines.warning(Stage.CHECK, f"w{ESCAPE}", hint=ESCAPE)
    with lines.stage(Stage.CLONE, HOSTILE):
        pass
    text = output.getvalue() + printed(adjustment_table([adjustment], width=200))
    no_escapes(text)
    assert "\\x1b[31mred" in text
    assert not re.search(r"^error\[FORGED\]", text, re.MULTILINE)


def adjusted(**values):
    return Adjustment(
        **{"code": "ADDED", "package": "wandb", "before": "", "after": "", "path": "requirements.txt", "line": 2}
        | values,
        reason="a learner's training is private, and the operator's word counts",
    )


def test_a_requirement_without_a_version_is_taken_out_not_added():
    output = io.StringIO()
    lines = LineReporter(Console(file=output, width=200, soft_wrap=True, highlight=False))
    for code in ("REMOVED", "ADDED"):
        lines.adjusted(adjusted(code=code))
    removed, added = output.getvalue().splitlines()
    assert removed.startswith("adjusted[REMOVED]: wandb taken out (requirements.txt:2): ")
    assert added.startswith("adjusted[ADDED]: wandb added, any version (requirements.txt:2): ")
    table = printed(adjustment_table([adjusted(code="REMOVED"), adjusted(code="ADDED")], width=200))
    assert re.search(r"wandb +any +- +all", table)
    assert re.search(r"wandb +- +any +all", table)


@pytest.mark.parametrize(("width", "whole"), [(80, True), (60, False)])
def test_reasons_are_folded_before_places_and_names(width, whole):
    """Where the other columns leave room for a reason: a place is to be copied."""
    table = adjustment_table([adjusted(after="==2.14.3,<3")], width=width)
    output = io.StringIO()
    Console(file=output, width=width, no_color=True).print(table)
    assert ("requirements.txt:2  wandb " in output.getvalue()) is whole
    assert max(map(len, output.getvalue().splitlines())) <= width
    assert "".join(output.getvalue().split()).count("private") == 1


def test_hostile_text_from_a_repository_through_the_whole_command(run, tmp_path):
    repository = tmp_path / "digits"
    repository.mkdir()
    (repository / "model_manager.py").write_text(f"class ModelManager{ESCAPE}:\n    pass\n")
    (repository / "data_manager.py").write_text("class DataManager:\n    pass\n")
    (repository / "requirements.txt").write_text(f"numpy=={ESCAPE}\nna{ESCAPE}me @ file:///x\n")
    code, out, err = run("check", str(repository), "--json")
    assert code in (4, 5)
    assert json.loads(out)["error"]["findings"]
    no_escapes(out)
    no_escapes(err)


def test_bars_on_a_terminal_count_and_end():
    output = io.StringIO()
    console = Console(file=output, width=160, force_terminal=True, highlight=False)
    with BarReporter(console) as bars:
        bars.progress(Stage.FETCH, done=1, total=2)  # before its stage: nothing to show yet
        with bars.stage(Stage.FETCH, f"12 wheels{ESCAPE}"):
            bars.progress(Stage.FETCH, done=1_000_000, total=2_000_000)
        with pytest.raises(Cancelled), bars.stage(Stage.PUSH, "registry"):
            raise Cancelled("stop")
        bars.warning(Stage.PUSH, "slow")
    text = output.getvalue()
    assert "fetch" in text
    assert "12 wheels\\x1b" in text
    assert "warning" in text
    assert "\x07" not in text


def test_json_has_no_nan(capsys):
    """A model that diverges has a loss that JSON can't say."""
    print_json({"rounds": [{"loss": math.nan, "accuracy": 0.5}], "more": (math.inf, 1, None)})
    assert json.loads(capsys.readouterr().out) == {"rounds": [{"loss": None, "accuracy": 0.5}], "more": [None, 1, None]}
