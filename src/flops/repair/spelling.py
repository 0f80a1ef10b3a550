"""Corrections for lines of dependency files that can't be read: common mistakes, each correction proven by reading the file."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from flops.errors import Adjustment, DependencyError, Finding, RequirementForbidden, RequirementSyntax
from flops.formats import conda
from flops.formats.requirement import FILE_LIMIT, LINE_END, TEXT_LIMIT
from flops.repair import line_edit, rewrite
from flops.repair.similar_names import popular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    #: Reads dependency files; DependencyError with a finding for each line that can't be read.
    Read = Callable[[Mapping[str, bytes]], object]

#: Lines of a YAML file that are tried: its parser reports a mistake where nothing fits any more, which may be far below.
LINES = 200
#: Lines from a finding within which a stray character is looked for.
NEAR = 3
#: Findings that are corrected; a file with more is not a dependency file.
MOST = 20
#: Seconds after which nothing more is tried: each try reads all files.
SECONDS = 2.0
CODES = frozenset({RequirementSyntax.code, RequirementForbidden.code})
_NAMED = re.compile(r"\s*(?:-\s+)?[\"']?([A-Za-z_][\w.-]*)\s*(?:$|[=<>!~;#\"'])")
_NUMBER = r"v?\d[\w.*!+-]*"
#: Mistakes within one line and their corrections; the first that can be read is used.
MISTAKES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"=>"), ">="),
    (re.compile(r"=<"), "<="),
    (re.compile(r"===+"), "=="),
    (re.compile(rf"(?<![=<>!~])=(?={_NUMBER}|\s+{_NUMBER})"), "=="),
    (re.compile(r"[=<>!~]+\s*(?=$|[\s;#\"'])"), ""),
    (re.compile(rf"(?<=[A-Za-z0-9_\]])\s+(?={_NUMBER}\s*(?:$|[;#]))"), "=="),
    (re.compile(r"[,;:.]+(?=\s*(?:$|#|[\"']))"), ""),
    (re.compile(r"(?<=[\w*])(?=[<>!~]=?\s*\d)(?<=\d)"), ","),
    (re.compile(r"\.{2,}"), "."),
    (re.compile(r"(?<=\d)\.[xX](?=$|[\s;,#\"'])"), ".*"),
    (re.compile(r"(?<=\d),(?=\d)"), "."),
    (re.compile(r"(\[[\w,\s-]+?)(?=\s*(?:[=<>!~]|$))"), r"\1]"),
    (re.compile(r"(?<=\w)\](?=[=<>!~]|$)"), ""),
    (re.compile(r"[\"']"), ""),
    (re.compile(r"^(\s*)-(?=[\w\"'])"), r"\1- "),
    (re.compile(r"\t"), "  "),
    (re.compile(r"^(\s*(?:-\s+)?(?:pip|dependencies|channels|name))(?=\s*$)"), r"\1:"),
    (re.compile(r"^(\s*(?:dependencies|channels))\s*[=;.]\s*$"), r"\1:"),
    (re.compile(r"^\s+(?=(?:dependencies|channels|name)\s*:)"), ""),
    (re.compile(rf"^(\s*(?:-\s+)?[\w.-]+)\s*:\s*(?={_NUMBER})"), r"\1=="),
)


def corrections(files: Mapping[str, bytes], error: DependencyError, read: Read) -> tuple[Adjustment, ...]:
    """Corrections of every line that the error names, with which the files can be read; () where one has none."""
    found: list[Adjustment] = []
    findings = error.findings
    deadline = time.monotonic() + SECONDS
    for _ in range(MOST):
        wrong = next((finding for finding in findings if finding.code in CODES), None)
        step = _correct(files, wrong, len(findings), read, deadline) if wrong else None
        if step is None:
            return ()
        change, files, findings = step
        found.append(change)
        if not findings:
            return tuple(found)
    return ()


def _correct(
    files: Mapping[str, bytes], finding: Finding, count: int, read: Read, deadline: float
) -> tuple[Adjustment, dict[str, bytes], tuple[Finding, ...]] | None:
    """The first change that helps, the files with it, and what is still wrong with them."""
    for change in _changes(files, finding):
        if time.monotonic() > deadline:
            break
        edited = rewrite.edit(files, [change])
        if edited.left or finding.path not in edited.files:
            continue
        after = {**files, **edited.files}
        left = _problems(after, read)
        if len(left) < count and not any(one.where == finding.where for one in left):
            return change, after, left
    return None


def _problems(files: Mapping[str, bytes], read: Read) -> tuple[Finding, ...]:
    try:
        read(files)
    except DependencyError as error:
        return error.findings or (Finding(path="", line=0, code=error.code, message=error.message),)
    return ()


def _changes(files: Mapping[str, bytes], finding: Finding) -> Iterator[Adjustment]:
    lines = LINE_END.split(files.get(finding.path, b"")[:FILE_LIMIT].decode("utf-8", "replace"))
    is_yaml = finding.path.endswith(rewrite.YAML)
    by_distance = sorted(range(1, len(lines) + 1), key=lambda number: (abs(number - finding.line), number))
    for number in by_distance[:LINES] if is_yaml else [finding.line]:
        if not 0 < number <= len(lines) or len(lines[number - 1]) > TEXT_LIMIT:  # searches below take a line's square
            continue
        written = lines[number - 1].removeprefix("\ufeff")
        above = lines[number - 2] if number > 1 else ""
        named = _NAMED.match(written)
        reason = conda.names().reason(named[1]) if named else None
        texts = [*([""] if reason else []), *_corrected(written)]
        texts += _indented_as(above, written) if is_yaml else _without_dash(written)
        texts += _without_one(written) if abs(number - finding.line) <= NEAR else ()
        for text in dict.fromkeys(texts):
            yield Adjustment(
                code=line_edit.SPELLED,
                package="",
                before=written,
                after=text,
                path=finding.path,
                line=number,
                reason=reason or finding.message,
            )


def _corrected(written: str) -> Iterator[str]:
    """The line with one mistake corrected, then with two."""
    code, comment = _code_and_comment(written)
    once = [text for pattern, meant in MISTAKES if (text := pattern.sub(meant, code)) != code]
    twice = [text for one in once for pattern, meant in MISTAKES if (text := pattern.sub(meant, one)) != one]
    yield from (text.rstrip() + comment for text in (*once, *twice) if text.strip())


def _without_one(written: str) -> Iterator[str]:
    """The line without one character that is no letter or digit, where it then begins with a well-known name."""
    code, comment = _code_and_comment(written)
    for index, character in enumerate(code):
        if not character.isalnum() and not character.isspace():
            text = code[:index] + code[index + 1 :]
            named = _NAMED.match(text)
            name = named and canonicalize_name(named[1])
            if name and (name in popular() or name in conda.names().index):
                yield text + comment


def _without_dash(written: str) -> Iterator[str]:
    """A line of a YAML list in a file of plain lines."""
    if text := written.lstrip().removeprefix("- "):
        yield from (text, *_corrected(text))


def _indented_as(above: str, written: str) -> Iterator[str]:
    """An item of a list, indented as the item above."""
    if written.lstrip().startswith("- ") and above.lstrip().startswith("- "):
        yield above[: len(above) - len(above.lstrip())] + written.lstrip()


def _code_and_comment(written: str) -> tuple[str, str]:
    found = re.search(r"\s+#.*$", written)
    return (written[: found.start()], found[0]) if found else (written, "")


def explained(error: DependencyError, files: Mapping[str, bytes], read: Read) -> DependencyError:
    """The error with corrections as its repairs, in its findings' hints, and as a patch in its hint, if there are any."""
    error.repairs = corrections(files, error, read)
    if error.repairs:
        meant = {change.where: change.after.strip() for change in error.repairs}
        error.findings = tuple(
            replace(one, hint=f"did you mean {meant[one.where]}?" if meant[one.where] else "remove the line")
            if one.where in meant
            else one
            for one in error.findings
        )
        diff = rewrite.patch(files, rewrite.edit(files, error.repairs).files)
        error.hint = f"{error.hint}; what may be meant, as a patch:\n{diff.rstrip()}"
    return error
