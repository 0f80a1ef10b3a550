"""A hint taken apart: its words, and the patch that it may end with. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: What builders put before a unified diff of the user's file.
_MARK = "as a patch:\n"
#: A definition or a requirement that is to be written, with what stands there and remarks beside it.
_CODE = re.compile(
    r"write ((?:def|class) .+?:|[\w.,\[\]-]+[<>=!~]=?[^\s;()]+)(?: instead of [^\s;()]+| and [^;()]+)?(?: \([^()]*\))?"
)


@dataclass(frozen=True, kw_only=True)
class PatchLine:
    kind: str
    """add, del, at (where), or same."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Advice:
    words: str
    patch: str = ""
    """A unified diff; empty where there is none."""

    @property
    def code(self) -> str:
        """What is copied: the code alone where the words are about one piece of it, else all of them."""
        found = _CODE.fullmatch(self.words)
        return found[1] if found else self.words

    @property
    def parts(self) -> tuple[tuple[str, bool], ...]:
        """The words in pieces, and whether each is code."""
        found = _CODE.fullmatch(self.words)
        if not found:
            return ((self.words, False),)
        begin, end = found.span(1)
        pieces = ((self.words[:begin], False), (self.words[begin:end], True), (self.words[end:], False))
        return tuple(piece for piece in pieces if piece[0])

    @property
    def lines(self) -> tuple[PatchLine, ...]:
        return tuple(PatchLine(kind=_kind(line), text=line) for line in self.patch.splitlines())


def advice(hint: str) -> Advice:
    """The parts of an error's or a finding's hint."""
    words, mark, patch = hint.partition(_MARK)
    if not mark or not patch.startswith("--- "):
        return Advice(words=hint)
    return Advice(words=words.rstrip(" ;,\n"), patch=patch)


def _kind(line: str) -> str:
    if line.startswith(("--- ", "+++ ", "@@")):
        return "at"
    return {"+": "add", "-": "del"}.get(line[:1], "same")
