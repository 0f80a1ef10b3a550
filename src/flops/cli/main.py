"""The command `flops`: the one place where failures are caught, shown, and turned into exit codes."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

import typer
from rich.console import Console

from flops import programs
from flops.cli.render import error_lines, print_json
from flops.errors import Cancelled, FlopsError, InternalError, OutputError, UsageError
from flops.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType

#: The module of each command, and its function where that is not `command`.
COMMANDS = {
    "build": "flops.cli.build",
    "check": "flops.cli.check",
    "try": "flops.cli.try_",
    "demo": "flops.cli.demo",
    "serve": "flops.cli.serve",
    "observe": "flops.cli.observe",
    "job": "flops.cli.job",
}
#: The commands below another one, and where each is.
GROUPS = {
    "project": (
        "Start and follow projects of a manager.",
        {name: f"flops.cli.project:{name}_command" for name in ("start", "list", "show", "watch", "logs", "cancel")},
    ),
    "images": (
        "What a registry holds: list, show, verify, prune, and images of our own.",
        {
            **{name: f"flops.cli.images_{name}" for name in ("list", "show", "prune", "verify")},
            **{name: f"flops.cli.images_make:{name}_command" for name in ("base", "builder")},
        },
    ),
}


#: Words of commands that follow something: their JSON is one object per line, in failure too.
FOLLOWING = frozenset({"watch", "--watch", "observe"})


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"flops {__version__}\n")
        raise typer.Exit


def _options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    del version  # its callback has answered
    _help(context)


def _help(context: typer.Context) -> None:
    """Without a command the help is what is wanted."""
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


def _application(words: Sequence[str]) -> typer.Typer:
    """Of all commands only the one that is called is imported: together they take longer than a check."""
    app = typer.Typer(
        name="flops",
        help="From an ML Git repository to federated-learning images for every platform.",
        invoke_without_command=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    first, second = ([word for word in words if not word.startswith("-")] + ["", ""])[:2]
    if first not in GROUPS:
        _add(app, COMMANDS, first)
    for name in [first] if first in GROUPS else [] if first in COMMANDS else GROUPS:
        told, commands = GROUPS[name]
        group = typer.Typer(help=told, invoke_without_command=True, rich_markup_mode=None)
        group.callback()(_help)
        _add(group, commands, second)
        app.add_typer(group, name=name)
    return app


def _add(app: typer.Typer, commands: Mapping[str, str], called: str) -> None:
    """The command that is called, or all of them where it is none of these."""
    for name in [called] if called in commands else commands:
        module, _, function = commands[name].partition(":")
        app.command(name)(getattr(import_module(module), function or "command"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (docs/http.md, "JSON of the command line")."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:  # a process of our own: orchestrators end one by SIGTERM, which is no other than Ctrl-C
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupted)
    failure: FlopsError
    try:
        with _output():
            code = _application(words)(args=words, prog_name="flops", standalone_mode=False)
        if code == Cancelled.exit_code:  # typer answers an interrupt with this code and without a word
            raise KeyboardInterrupt  # noqa: TRY301
    except (SystemExit, BrokenPipeError) as ended:  # a command that has told everything itself; nobody who reads it
        return ended.code if isinstance(ended, SystemExit) and isinstance(ended.code, int) else 1
    except (KeyboardInterrupt, typer.Abort):
        failure = Cancelled("interrupted")
    except typer.TyperException as error:
        failure = _usage(error)
    except FlopsError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 - a bug of ours, told as one
        traceback.print_exc(file=sys.stderr)
        failure = InternalError(
            f"{type(error).__name__}: {error}", hint="this is a bug of the image builder: please report the lines above"
        )
    else:
        return code if isinstance(code, int) else 0
    return _fail(failure, words)


class _Output:
    """Standard output; what can't be written there (a disk that is full) is an OutputError, a reader that left is not."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._failure: OutputError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        with self._told():
            return self._file.write(text)

    def flush(self) -> None:
        with self._told():
            self._file.flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        if self._failure is not None:  # told again, should somebody have swallowed it
            raise self._failure
        try:
            yield
        except OSError as error:
            self._give_up()
            if isinstance(error, BrokenPipeError):
                raise
            message = f"can't write to standard output: {error.strerror}"
            self._failure = OutputError(message, hint="see where it leads to, and whether that is full")
            raise self._failure from error

    def _give_up(self) -> None:
        """What is left in the buffer goes nowhere: written when the interpreter ends, it would fail again, as code 120."""
        with suppress(OSError, ValueError):  # a file without a descriptor
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._file.fileno())
            os.close(nowhere)


@contextmanager
def _output() -> Iterator[None]:
    """Whoever prints meanwhile prints through `_Output`, to the last byte."""
    before = sys.stdout
    sys.stdout = cast("TextIO", _Output(before))
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout = before


def _interrupted(_number: int, _frame: FrameType | None) -> NoReturn:
    """Whoever waits for a program or makes a layer, in whatever thread, ends now too."""
    programs.cancel()
    raise KeyboardInterrupt


def _usage(error: typer.TyperException) -> UsageError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "flops"
    told = getattr(error, "format_message", error.__str__)()
    return UsageError(told, hint=f"{command} --help lists what there is")


def _fail(error: FlopsError, words: Sequence[str]) -> int:
    if "--json" in words:
        with suppress(OutputError, BrokenPipeError), _output():  # then stderr alone has it
            if FOLLOWING.isdisjoint(words):
                print_json({"error": error.to_json()})
            else:
                sys.stdout.write(json.dumps({"error": error.to_json()}, separators=(",", ":")) + "\n")
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for line in error_lines(error):
        console.print(line)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
