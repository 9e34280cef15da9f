"""Dates: every form in which chat programs write a moment, as milliseconds since 1970 UTC. Pure.

    2025-01-05T13:05:09.123Z   2025-01-05 13:05:09+01:00   2025-01-05      ISO 8601
    January 5, 2025 1:05pm     Jan 5, 2025, 1:05:09 PM                     SillyTavern's old messages
    2025-1-5@13h05m09s123ms    2025-1-5 @13h 05m 09s 123ms                 SillyTavern's names and dates
    20250105_130509            20250105130509                              CardShark's file names
    2025/01/05 13:05:09        5 Jan 2025 13:05:09    05.01.2025 13:05     transcripts
    Sun, 05 Jan 2025 13:05:09 GMT    Sun Jan 05 2025 13:05:09 GMT+0100 (CET)    mail, browsers
    1736082309123   1736082309.5   "1736082309"                            epoch: s, ms, us or ns, as its size tells

Rules of this module:
- What tells no zone is taken as UTC: the same source gives the same moments everywhere.
- 1/5/2025 is in nobody's form for certain and is not read.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

from tellback_protocol.moments import LAST_MS

__all__ = ["compact_text", "moment_ms"]

_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), 1
    )
}
_TEXT_CHARACTERS_MAX: Final = 100
_CLOCK: Final = (
    r"(?:[,T ]\s*(?:at\s+)?(?P<h>\d{1,2}):(?P<m>\d{2})(?::(?P<s>\d{2})(?:[.,](?P<f>\d{1,9}))?)?"
    r"\s*(?P<half>[ap]\.?m\.?)?)?"
)
_ZONE: Final = r"\s*(?P<zone>Z|UTC|GMT|(?:UTC|GMT)?[+-]\d{2}:?\d{2})?(?:\s*\([^)]*\))?"
_FORMS: Final = tuple(
    re.compile(form + r"\Z", re.IGNORECASE)
    for form in (
        r"(?P<y>\d{4})[-/](?P<mo>\d{1,2})[-/](?P<d>\d{1,2})" + _CLOCK + _ZONE,
        r"(?P<name>[a-z]{3,9})\.? (?P<d>\d{1,2})(?:st|nd|rd|th)?,? (?P<y>\d{4})" + _CLOCK + _ZONE,
        r"(?:[a-z]{3},? )?(?P<d>\d{1,2}) (?P<name>[a-z]{3,9})\.? (?P<y>\d{4})" + _CLOCK + _ZONE,
        r"[a-z]{3} (?P<name>[a-z]{3}) (?P<d>\d{1,2}) (?P<y>\d{4})" + _CLOCK + _ZONE,
        r"(?P<d>\d{1,2})\.(?P<mo>\d{1,2})\.(?P<y>\d{4})" + _CLOCK + _ZONE,
        r"(?P<y>\d{4})-(?P<mo>\d{1,2})-(?P<d>\d{1,2}) ?@ ?(?P<h>\d{1,2})h ?(?P<m>\d{1,2})m(?: ?(?P<s>\d{1,2})s"
        r"(?: ?(?P<ms>\d{1,3})ms)?)?",
        r"(?P<y>\d{4})(?P<mo>\d{2})(?P<d>\d{2})[_T-]?(?P<h>\d{2})(?P<m>\d{2})(?P<s>\d{2})(?:Z)?",
    )
)
_COMPACT: Final = re.compile(r"(?:19|20)\d{12}")
_NUMBER: Final = re.compile(r"\d{1,20}(?:\.\d{1,9})?")
_SECONDS_MAX: Final = 100_000_000_000
"""Epoch seconds until the year 5138; what is larger counts milliseconds, then micro- and nanoseconds."""


def moment_ms(value: Any) -> int | None:
    """The moment that a date of any form tells; None when it tells none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return _epoch(float(value)) if abs(value) < 1e21 else None
    if not isinstance(value, str) or len(value) > _TEXT_CHARACTERS_MAX:
        return None
    text = value.strip()
    if _NUMBER.fullmatch(text) and not _COMPACT.fullmatch(text):
        return _epoch(float(text))
    for form in _FORMS:
        found = form.match(text)
        if found is not None:
            return _of(found.groupdict())
    return None


def compact_text(when_ms: int) -> str:
    """`YYYYMMDD_HHMMSS`, as CardShark names its files."""
    return datetime.fromtimestamp(min(max(0, when_ms), LAST_MS) // 1000, UTC).strftime("%Y%m%d_%H%M%S")


def _epoch(value: float) -> int | None:
    if not math.isfinite(value) or value <= 0:
        return None
    for factor in (1000.0, 1.0, 0.001, 0.000001):
        if value * factor < _SECONDS_MAX * 1000:
            return int(value * factor)
    return None


def _of(parts: dict[str, str | None]) -> int | None:
    def number(key: str) -> int:
        return int(parts.get(key) or 0)

    month = number("mo") if parts.get("mo") else _MONTHS.get((parts.get("name") or "")[:3].lower(), 0)
    hour = number("h")
    half = parts.get("half")
    if half:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half[0] in "pP" else 0)
    microseconds = int(((parts.get("f") or "") + "000000")[:6]) if parts.get("f") else 1000 * number("ms")
    try:
        found = datetime(
            number("y"), month, number("d"), hour, number("m"), number("s"), microseconds, _zone(parts.get("zone"))
        )
        return max(0, round(found.timestamp() * 1000))
    except (ValueError, OverflowError):
        return None


def _zone(text: str | None) -> timezone:
    sign = next((place for place, character in enumerate(text or "") if character in "+-"), -1)
    if text is None or sign < 0:
        return UTC
    digits = text[sign + 1 :].replace(":", "")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-offset if text[sign] == "-" else offset)
