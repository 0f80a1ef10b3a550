"""What a wheel says about its licence (core metadata 2.4 and older); bytes in, a short text out."""

from __future__ import annotations

import re
from email.parser import HeaderParser

#: A field that holds a whole licence's text is no name of one.
_LONGEST = 100
#: Bytes of a METADATA that is read for it, and of its fields.
LARGEST = 4 * 1024 * 1024
_LARGEST_HEADERS = 1024 * 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: Classifiers that mean one licence of SPDX's list; the others are taken by their last words.
_CLASSIFIERS = {
    "Academic Free License (AFL)": "AFL-3.0",
    "Apache Software License": "Apache-2.0",
    "GNU Affero General Public License v3": "AGPL-3.0-only",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "Zope Public License": "ZPL-2.1",
}
_PREFIX = "License :: "


def licence(metadata: bytes) -> str:
    """An SPDX expression where the wheel has one, else its licence's name; empty where it tells none.

    License-Expression, then classifiers, then a License field of one short line.
    """
    text = metadata.decode("utf-8", "replace").replace("\r\n", "\n").partition("\n\n")[0]
    headers = HeaderParser().parsestr(text[:_LARGEST_HEADERS])
    expression = _short(headers.get("License-Expression"))
    if expression:
        return expression
    classified = [
        line.removeprefix(_PREFIX).rpartition(" :: ")[2]
        for line in map(str, headers.get_all("Classifier") or [])
        if line.startswith(_PREFIX) and line != f"{_PREFIX}OSI Approved"
    ]
    if len(classified) == 1 and classified[0] in _CLASSIFIERS:
        return _CLASSIFIERS[classified[0]]
    return _short(headers.get("License")) or _short("; ".join(classified))


def _short(value: object) -> str:
    text = str(value or "").strip()
    return text if len(text) <= _LONGEST and not _CONTROL.search(text) and text.upper() != "UNKNOWN" else ""
