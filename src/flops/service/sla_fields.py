"""One JSON object of an SLA, read key by key: what is wrong with a value is collected, with its JSON pointer (RFC 6901)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar, overload

from flops.errors import Finding, SlaInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

E = TypeVar("E", bound=Enum)

TEXT_LIMIT = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
#: Unknown keys that are told one by one.
_TOLD = 20
#: Characters of a key that are shown; a longer one is no known key misspelt.
_SHOWN = 80
#: How much alike a misspelt key and the known one are, from 0 to 1.
_ALIKE = 0.8


@dataclass(kw_only=True)
class Fields:
    """Reads each key at most once; a value that is wrong is a finding, and its default stands in for it meanwhile."""

    values: Mapping[str, Any]
    pointer: str = ""
    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    sections: list[Fields] = field(default_factory=list)

    @classmethod
    def of(cls, document: object) -> Fields:
        fields = cls(values=document if isinstance(document, dict) else {})
        if not isinstance(document, dict):
            fields.findings.append(_finding("", "is not a JSON object", 'write {"ml_repo_url": "https://..."}'))
        return fields

    def find(self, key: str, message: str, hint: str = "", *, code: str = SlaInvalid.code) -> None:
        self.findings.append(_finding(f"{self.pointer}/{key}", message, hint, code=code))

    def warn(self, key: str, message: str) -> None:
        self.warnings.append(f"{self.pointer}/{key} {message}")

    def all_warnings(self) -> tuple[str, ...]:
        """With every key that nobody has asked for."""
        unknown = [key for key in self.values if key not in self.seen]
        told = [f"{self.pointer}/{_shown(key)} is unknown and ignored{self._meant(key)}" for key in unknown[:_TOLD]]
        if len(unknown) > _TOLD:
            told.append(f"{self.pointer or 'the SLA'} has {len(unknown) - _TOLD} more unknown keys")
        return (*self.warnings, *told, *(one for section in self.sections for one in section.all_warnings()))

    def section(self, key: str) -> Fields:
        value = self._value(key)
        if value is not None and not isinstance(value, dict):
            self.find(key, "is not a JSON object")
        values = value if isinstance(value, dict) else {}
        made = Fields(values=values, pointer=f"{self.pointer}/{key}", findings=self.findings)
        self.sections.append(made)
        return made

    def text(
        self,
        key: str,
        *,
        limit: int = TEXT_LIMIT,
        pattern: re.Pattern[str] | None = None,
        hint: str = "",
        required: bool = False,
    ) -> str | None:
        """One line; None where it is absent, null or empty."""
        value = self._value(key)
        if value is None or value == "":
            if required:
                self.find(key, "is missing", hint)
            return None
        return value if self._is_text(key, value, limit, pattern, hint) else None

    def texts(
        self,
        key: str,
        *,
        limit: int,
        default: tuple[str, ...] = (),
        least: int = 0,
        pattern: re.Pattern[str] | None = None,
    ) -> tuple[str, ...]:
        value = self._value(key)
        if value is None:
            return default
        if not isinstance(value, list) or not least <= len(value) <= limit:
            self.find(key, f"is not a list of {least} to {limit} texts")
            return default
        checked = [self._is_text(f"{key}/{number}", one, TEXT_LIMIT, pattern, "") for number, one in enumerate(value)]
        return tuple(value) if all(checked) else default

    def flag(self, key: str) -> bool:
        value = self._value(key)
        if value is not None and not isinstance(value, bool):
            self.find(key, "is neither true nor false")
        return value is True

    def number(self, key: str, default: int, *, least: int, most: int) -> int:
        value = self._value(key)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():  # JSON knows one kind of number: 3.0 is 3
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.find(key, f"is not a whole number from {least} to {most}")
            return default
        return value

    def one_of(self, key: str, known: Sequence[str], default: str) -> str:
        value = self._value(key)
        if value is None:
            return default
        if not isinstance(value, str) or value not in known:
            self.find(key, f"is none of {', '.join(known)}")
            return default
        return value

    @overload
    def choice(self, key: str, kind: type[E], default: E) -> E: ...

    @overload
    def choice(self, key: str, kind: type[E], default: None) -> E | None: ...

    def choice(self, key: str, kind: type[E], default: E | None) -> E | None:
        known = {member.value: member for member in kind}
        value = self._value(key)
        if value is None:
            return default
        if not isinstance(value, str) or value not in known:
            self.find(key, f"is none of {', '.join(known)}")
            return default
        return known[value]

    def _meant(self, key: str) -> str:
        near = get_close_matches(key, self.seen - self.values.keys(), n=1, cutoff=_ALIKE) if len(key) <= _SHOWN else []
        return f"; {near[0]} is known" if near else ""

    def _value(self, key: str) -> Any:
        self.seen.add(key)
        return self.values.get(key)

    def _is_text(self, key: str, value: object, limit: int, pattern: re.Pattern[str] | None, hint: str) -> bool:
        if not isinstance(value, str) or not value or len(value) > limit or _CONTROL.search(value) or not _utf8(value):
            self.find(key, f"is not a text of one line and 1 to {limit} characters", hint)
            return False
        if pattern is not None and not pattern.fullmatch(value):
            self.find(key, f"can't be {_shown(value)!r}", hint)
            return False
        return True


def _finding(pointer: str, message: str, hint: str = "", *, code: str = SlaInvalid.code) -> Finding:
    return Finding(path=pointer, line=0, code=code, message=message, hint=hint)


def _shown(key: str) -> str:
    """As it may stand in a JSON pointer and in a message."""
    text = key if len(key) <= _SHOWN else key[:_SHOWN] + "..."
    return text.encode("utf-8", "replace").decode().replace("~", "~0").replace("/", "~1")


def _utf8(text: str) -> bool:
    """Half a surrogate pair is JSON and no text: neither a database nor an answer could hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
