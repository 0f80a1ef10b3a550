"""TOML files of the dependency formats: bytes in, values out, each of which knows its line.

The standard library reads the values and judges the file; it tells no places, so `scan` walks the text once more for those.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from flops.formats.requirement import Reading

T = TypeVar("T")
TYPES: Mapping[type, str] = {dict: "table", list: "list", str: "text", int: "number"}

#: Keys and indexes from the root of a document.
Path = tuple[str | int, ...]
#: Arrays and tables in one another, and parts of a key; a lock has five.
DEPTH = 32
#: Lines, keys, tables and items of lists, and parts of keys; a lock of a megabyte has some ten thousand.
VALUES = 250_000
PARTS = 50_000
SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
BLANK = re.compile(r"[ \t]*")
BARE = re.compile(r"[A-Za-z0-9_-]+")
LITERAL = re.compile(r"'[^'\n]*'")
BASIC = re.compile(r'"(?:[^"\\\n]|\\[^\n])*+"')
LONG_LITERAL = re.compile(r"'''.*?'{3,5}", re.DOTALL)
LONG_BASIC = re.compile(r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*+"{3,5}', re.DOTALL)
SCALAR = re.compile(r"[^,\]}#\r\n]+")
#: All but the brackets of lists and tables.
FLAT = re.compile(
    r"(?:[^\[\]{}\"'#]+|#[^\n]*|" + "|".join(one.pattern for one in (LONG_LITERAL, LONG_BASIC, LITERAL, BASIC)) + ")*",
    re.DOTALL,
)
STRINGS = (LONG_LITERAL, LONG_BASIC, LITERAL, BASIC)
#: Strings and comments, the signs between them that make work, and quotes that nothing closes.
SIGN = re.compile(
    "|".join(
        (
            *(LONG_LITERAL.pattern, LONG_BASIC.pattern, r"(?P<long>'''|\"\"\")", LITERAL.pattern, BASIC.pattern),
            *(r"#[^\n]*", r"(?P<sign>[\[\]{}=,.\n\"'])"),
        )
    ),
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class TomlDocument:
    """One file; what has another type than a reader asks for is a problem with its line, once."""

    path: str
    root: Mapping[str, Any]
    lines: Mapping[Path, int]
    reading: Reading

    def line(self, *keys: str | int) -> int:
        """Where this value stands, or the nearest table around it."""
        for length in range(len(keys), 0, -1):
            if (found := self.lines.get(keys[:length])) is not None:
                return found
        return 0

    def get(self, kind: type[T], *keys: str | int) -> T | None:
        """The value there if it is of this type; None where there is none."""
        value: Any = self.root
        for number, key in enumerate(keys):
            if isinstance(key, int) and isinstance(value, list) and key < len(value):
                value = value[key]
            elif isinstance(key, str) and isinstance(value, Mapping):
                if key not in value:
                    return None
                value = value[key]
            else:
                self._wrong_type(keys[:number], "table" if isinstance(key, str) else "list")
                return None
        if isinstance(value, kind):
            return value
        self._wrong_type(keys, TYPES[kind])
        return None

    def table(self, *keys: str | int) -> dict[str, Any]:
        """The table there; empty where there is none."""
        return self.get(dict, *keys) or {}

    def items(self, *keys: str | int) -> list[Any]:
        """The list there; empty where there is none."""
        return self.get(list, *keys) or []

    def text(self, *keys: str | int) -> str:
        """The text there; empty where there is none."""
        return self.get(str, *keys) or ""

    def _wrong_type(self, keys: Path, name: str) -> None:
        shown = ".".join(str(key) for key in keys)[:80] if all(map(_plain, keys)) else "a value"
        article = "" if name == "text" else "a "
        self.reading.wrong(
            self.path, self.line(*keys), f"{shown} is not {article}{name}", "see the format's description"
        )


def read(
    path: str, data: bytes, reading: Reading, *, limit: int | None = None, closed: frozenset[str] = frozenset()
) -> TomlDocument | None:
    """Read a file; None, and a problem with its line, where it is no TOML.

    `limit`: bytes, where not the usual. `closed`: keys of lists and tables in which no line is asked for.
    """
    text = reading.text(path, data, limit=limit)
    if text is None:
        return None
    try:
        root = loads(text)
        lines = scan(text, closed)
    except Unfit as error:
        reading.wrong(path, error.line, error.reason, "write less into one file, and nest it less")
        return None
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+),", str(error))
        line = int(place[1]) if place else text.count("\n") + 1 if "end of document" in str(error) else 0
        reading.wrong(path, line, "not TOML", "check its quotes, commas and brackets")
        return None
    except ValueError:  # of numbers with thousands of digits
        reading.wrong(path, 0, "not TOML that anybody writes", "a number is too long")
        return None
    return TomlDocument(path=path, root=root, lines=lines, reading=reading)


class Unfit(ValueError):
    """What would make a small file a long work."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line, self.reason = line, reason


def loads(text: str) -> dict[str, Any]:
    """`tomllib.loads` of a text whose keys and nesting were looked at before; ValueError, and its kind Unfit."""
    if sum(map(text.count, "[{=,\n")) > VALUES:
        raise Unfit(0, f"the file has more than {VALUES} values")
    depth = dots = parts = 0
    for token in SIGN.finditer(text):
        sign = token["sign"]
        if token["long"] or sign in ('"', "'"):  # here it is no TOML, and is read no further
            break
        if sign == ".":
            dots, parts = dots + 1, parts + 1
        elif sign is not None:
            dots = 0
            depth += (sign in "[{") - (sign in "]}")
        if depth > DEPTH or dots > DEPTH or parts > PARTS:
            line = text.count("\n", 0, token.start()) + 1
            raise Unfit(
                line, f"lists, tables or keys lie more than {DEPTH} levels deep, or have more than {PARTS} parts"
            )
    return tomllib.loads(text)


@dataclass(frozen=True, kw_only=True)
class ListPlace:
    """Where a list stands; all are offsets in the text."""

    last: int
    """Behind the last item, else behind the opening bracket."""
    comma: int | None
    """Behind the comma that follows the last item; None where none does."""
    end: int
    """Of the closing bracket."""
    empty: bool


def list_place(text: str, *keys: str | int) -> ListPlace | None:
    """Where the list of these keys stands in a valid document; None where there is none. Unfit as `scan`."""
    scanner = _Scanner(text=text)
    scanner.document()
    return scanner.lists.get(keys)


def scan(text: str, closed: frozenset[str] = frozenset()) -> dict[Path, int]:
    """The line (1-based) of every key, table and list item of a valid document; Unfit beyond DEPTH.

    What lies inside of the values of the `closed` keys is passed over.
    """
    scanner = _Scanner(text=text, closed=closed)
    scanner.document()
    return scanner.lines


def _plain(key: str | int) -> bool:
    return isinstance(key, int) or BARE.fullmatch(key) is not None


@dataclass(kw_only=True)
class _Scanner:
    text: str
    closed: frozenset[str] = frozenset()
    at: int = 0
    lines: dict[Path, int] = field(default_factory=dict)
    counts: dict[Path, int] = field(default_factory=dict)
    """Of the arrays of tables so far."""
    lists: dict[Path, ListPlace] = field(default_factory=dict)
    counted: tuple[int, int] = (0, 1)
    """A place, and its line, from where the next is counted."""

    def document(self) -> None:
        table: Path = ()
        self.skip(SPACE)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self.header()
            else:
                self.pair(table)
            self.skip(SPACE)

    def header(self) -> Path:
        place = self.at
        many = self.text.startswith("[[", self.at)
        self.at += 2 if many else 1
        keys = self.key()
        self.at += 2 if many else 1
        *parents, last = keys
        table = (*self.within((), tuple(parents), place), last)
        if many:
            self.mark(table, place)
            self.counts[table] = self.counts.get(table, 0) + 1
            table = (*table, self.counts[table] - 1)
        elif table in self.counts:
            table = (*table, self.counts[table] - 1)
        self.mark(table, place)
        return table

    def pair(self, table: Path) -> None:
        place = self.at
        *parents, last = self.key()
        inner = self.within(table, tuple(parents), place)
        self.at += 1  # the equals sign
        self.mark((*inner, last), place)
        self.value((*inner, last))

    def within(self, table: Path, keys: tuple[str, ...], place: int) -> Path:
        """Go down by keys, into the last item of an array of tables."""
        for key in keys:
            table = (*table, key)
            self.mark(table, place)
            if table in self.counts:
                table = (*table, self.counts[table] - 1)
        return table

    def key(self) -> tuple[str, ...]:
        parts: list[str] = []
        while True:
            self.skip(BLANK)
            if found := BARE.match(self.text, self.at):
                parts.append(found[0])
            else:
                found = self.take(LITERAL if self.text[self.at] == "'" else BASIC)
                parts.append(str(tomllib.loads(f"k = {found[0]}")["k"]))
            self.at = found.end()
            self.skip(BLANK)
            if self.text[self.at] != ".":
                return tuple(parts)
            self.at += 1

    def value(self, path: Path) -> None:
        self.skip(SPACE)
        opening = self.text[self.at]
        if opening in "[{" and path[-1] in self.closed:
            self.pass_over()
        elif opening in "[{":
            self.at += 1
            self.collection(path, "]" if opening == "[" else "}")
        elif opening in "\"'":
            self.at = next(found for one in STRINGS if (found := one.match(self.text, self.at))).end()
        else:
            self.at = self.take(SCALAR).end()

    def collection(self, path: Path, closing: str) -> None:
        number = 0
        last, comma = self.at, None
        self.skip(SPACE)
        while self.text[self.at] != closing:
            if closing == "}":
                self.pair(path)
            else:
                self.mark((*path, number), self.at)
                self.value((*path, number))
                number += 1
            last, comma = self.at, None
            self.skip(SPACE)
            if self.text[self.at] == ",":
                self.at += 1
                comma = self.at
                self.skip(SPACE)
        if closing == "]":
            self.lists[path] = ListPlace(last=last, comma=comma, end=self.at, empty=number == 0)
        self.at += 1

    def pass_over(self) -> None:
        """To the end of a list or table, without a look at what it holds."""
        depth = 0
        while True:
            self.skip(FLAT)
            sign = self.text[self.at]
            self.at += 1
            depth += 1 if sign in "[{" else -1
            if depth == 0:
                return

    def take(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise ValueError(self.at)
        return found

    def skip(self, pattern: re.Pattern[str]) -> None:
        self.at = self.take(pattern).end()

    def mark(self, path: Path, place: int) -> None:
        """Remember a path's first line."""
        start, line = self.counted
        self.counted = (place, line + self.text.count("\n", start, place))
        if len(path) > 2 * DEPTH:  # every value has its own
            raise Unfit(self.counted[1], f"a value lies more than {2 * DEPTH} levels deep")
        self.lines.setdefault(path, self.counted[1])
