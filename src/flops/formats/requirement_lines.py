"""requirements.txt, as pip's documentation describes the format, read by us alone: bytes in, requirements out.

Taken: names, versions, extras, markers, comments, continued lines, hashes (what is locked is compared with them), and `-r` to
another file of the repository. Everything that would make a resolver read or run something else is refused, all of it at once.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flops.formats.requirement import FILE_LIMIT, LINE_END, DependencyFormat, FileHash

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flops.formats.requirement import Reading

FILE = "requirements.txt"
#: Files that `-r` may lead through.
FILES = 50
#: One space, not all of them: a search for `\s+#` in a line of spaces takes the square of their number.
COMMENT = re.compile(r"(^|\s)#.*$")
OPTION = re.compile(r"(--?[A-Za-z][A-Za-z-]*)(?:\s*=\s*|\s+)?(.*)", re.DOTALL)
SHORT = {"-r": "--requirement", "-c": "--constraint", "-e": "--editable", "-i": "--index-url", "-f": "--find-links"}
PATH = re.compile(r"[.~/\\]|[A-Za-z]:[\\/]|file:|[^\s;\[<>=!~]*(/|\\)|\S+\.(whl|zip|egg|tar(\.\w+)?|tgz)(\s|;|$)")
URL = re.compile(r"(\w+\+)?[A-Za-z][A-Za-z0-9+.-]*://")
HASH = re.compile(
    r"--hash[= ]\s*(?:sha256:(?P<sha256>[0-9a-fA-F]{64})|(?:sha384|sha512|sha224|sha1|md5|blake2b):[0-9a-fA-F]+)\s*"
)
IGNORED = frozenset({"--prefer-binary", "--require-hashes", "--only-binary", "--use-feature", "--progress-bar"})
INDEX = frozenset({"--index-url", "--extra-index-url", "--find-links", "--trusted-host", "--no-index"})
HINTS = {
    "--constraint": "write the versions into the requirements themselves",
    "--editable": "packages of the repository are imported from its root without being installed; remove the line",
    "--pre": "name the pre-release itself: NAME==VERSION",
    "--no-binary": "remove the line: only wheels are installed",
}


def speaks(data: bytes) -> bool:
    """Whether a file holds more than blank lines and comments; what is none of our text is told by who reads it."""
    return len(data) > FILE_LIMIT or any(True for _ in _logical_lines(data.decode("utf-8-sig", "replace")))


@dataclass(frozen=True, kw_only=True)
class RequirementLines:
    """Reads requirement lines into `reading`; constructing it does nothing."""

    reading: Reading
    files: Mapping[str, bytes]
    """What `-r` may follow, by path from the repository's root."""

    def read_file(self, path: str, data: bytes) -> None:
        """Read one file, and what it includes; each file is read once."""
        text = self.reading.text(path, data)
        for number, line in _logical_lines(text or ""):
            self.read_line(path, number, line)

    def read_line(self, path: str, number: int, line: str) -> None:
        """Read one logical line, which may be an option."""
        if "${" in line:
            self.reading.forbid(path, number, "variables are not filled in", "write the value itself")
        elif line.startswith("-"):
            self._option(path, number, line)
        elif URL.match(line):
            message = "a requirement is given as a URL"
            self.reading.forbid(path, number, message, "write NAME==VERSION from the package index")
        elif PATH.match(line):
            self.reading.forbid(path, number, "a requirement is given as a path", HINTS["--editable"])
        else:
            requirement, *options = re.split(r"\s(?=--?[A-Za-z])", line)
            hashes = [found for option in options if (found := HASH.fullmatch(option))]
            if any(not option.startswith("--hash") for option in options):
                message = "options of a single requirement are not supported"
                self.reading.forbid(path, number, message, "remove them")
                return
            if len(hashes) < len(options):
                self.reading.wrong(path, number, "a hash is incomplete", "write --hash=sha256: and 64 digits")
                return
            taken = tuple(FileHash(sha256=found["sha256"].lower()) for found in hashes if found["sha256"])
            if hashes and not taken:
                message = "only sha256 hashes can be compared with what is locked"
                self.reading.note(path, number, "HASH_NOT_COMPARED", message, "write --hash=sha256: and 64 digits")
            self.reading.add(requirement.strip(), path=path, line=number, hashes=taken)

    def _option(self, path: str, number: int, line: str) -> None:
        found = OPTION.fullmatch(line)
        name, value = (found[1], found[2].strip()) if found else (line[:2], "")
        if not name.startswith("--") and len(name) > 2:  # noqa: PLR2004  (-rNAME)
            name, value = name[:2], line[2:].strip()
        name = SHORT.get(name, name)
        if name == "--requirement":
            self._follow(path, number, value)
        elif name in IGNORED:
            message = f"{name} changes nothing here: only wheels are installed, by their hashes"
            self.reading.note(path, number, "OPTION_IGNORED", message)
        elif name in INDEX:
            hint = "remove the line; the operator of the builder chooses its index: FLOPS_INDEX_URL, FLOPS_TORCH_INDEX"
            self.reading.forbid(path, number, f"{name} names another package index", hint)
        else:
            shown = name if re.fullmatch(r"--?[a-z][a-z-]{0,30}", name) else "this option"
            self.reading.forbid(path, number, f"{shown} is not supported", HINTS.get(name, "remove the line"))

    def _follow(self, path: str, number: int, value: str) -> None:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), value))
        outside = not value or value.startswith(("/", "~")) or ":" in value or target.split("/")[0] == ".."
        if outside or "\\" in value:
            self.reading.forbid(path, number, "-r leads out of the repository", "name a file of the repository")
        elif target in self.reading.seen:
            return
        elif target not in self.files:
            message = "-r names a file that the repository does not have"
            self.reading.wrong(path, number, message, "check its name (.txt, .in); links don't count")
        elif len(self.reading.seen) >= FILES:
            self.reading.wrong(path, number, f"-r leads through more than {FILES} files", "write them as one")
        else:
            self.read_file(target, self.files[target])


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, joined where they end in a backslash, with the number of their first."""
    pending, start = "", 0
    for number, raw in enumerate([*LINE_END.split(text), ""], start=1):
        start = start or number
        comment = COMMENT.match(raw) is not None
        if raw.endswith("\\") and not comment:
            pending += raw[:-1]
            continue
        line = COMMENT.sub("", f"{pending} {raw}" if comment else pending + raw).strip()
        if line:
            yield start, line
        pending, start = "", 0
    if line := COMMENT.sub("", pending).strip():
        yield start, line


FORMAT = DependencyFormat(
    names=(FILE,),
    read=lambda file, reading: RequirementLines(reading=reading, files=file.files).read_file(file.path, file.data),
    lists_dependencies=lambda file: speaks(file.data),
)
