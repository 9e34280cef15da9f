"""Every form of a date that chat programs write."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tellback_protocol.moments import utc_text
from tellback_server.transfer.dates import compact_text, moment_ms

MOMENT = 1736082309123
SECOND = 1736082309000
MINUTE = 1736082300000
DAY = 1736035200000


@pytest.mark.parametrize(("text", "expected"), [
    ("2025-01-05T13:05:09.123Z", MOMENT),
    ("2025-01-05T14:05:09.123+01:00", MOMENT),
    ("2025-01-05 13:05:09,123", MOMENT),
    ("2025-01-05T13:05:09.123456", MOMENT),
    ("2025-01-05T08:05:09-0500", SECOND),
    ("2025/01/05 13:05:09", SECOND),
    ("2025-01-05", DAY),
    ("January 5, 2025 1:05pm", MINUTE),
    ("January 5, 2025 01:05 PM", MINUTE),
    ("Jan 5, 2025, 1:05:09 p.m.", SECOND),
    ("January 5, 2025 12:00am", DAY),
    ("January 5, 2025 12:00pm", DAY + 43_200_000),
    ("5 January 2025 13:05", MINUTE),
    ("05.01.2025 13:05", MINUTE),
    ("2025-1-5@13h05m09s123ms", MOMENT),
    ("2025-1-5 @13h 05m 09s 123ms", MOMENT),
    ("2025-01-05@13h05m09s", SECOND),
    ("20250105_130509", SECOND),
    ("20250105130509", SECOND),
    ("Sun, 05 Jan 2025 13:05:09 GMT", SECOND),
    ("Sun Jan 05 2025 14:05:09 GMT+0100 (Central European Time)", SECOND),
    ("1736082309123", MOMENT),
    (MOMENT, MOMENT),
    (1736082309, SECOND),
    (1736082309.123, MOMENT),
    ("1736082309", SECOND),
    (MOMENT * 1000, MOMENT),
    (MOMENT * 1_000_000, MOMENT),
    ("", None), ("soon", None), ("2025-13-05", None), ("2025-02-30", None), ("1/5/2025", None), (0, None),
    (-1, None), (True, None), (None, None), (float("inf"), None), (float("nan"), None), ([2025], None),
    ("January 5, 2025 13:05pm", None), ("9" * 90, None), (10**400, None), ("2025-01-05T25:00:00Z", None),
])
def test_a_date_of_any_form_tells_its_moment(text: object, expected: int | None) -> None:
    assert moment_ms(text) == expected


@given(st.datetimes(min_value=datetime(1990, 1, 1), max_value=datetime(2200, 1, 1)), st.integers(-720, 720))  # noqa: DTZ001
def test_what_programs_write_is_read_back(naive: datetime, offset_minutes: int) -> None:
    """Each form, to the precision that it has."""
    moment = naive.replace(microsecond=naive.microsecond // 1000 * 1000, tzinfo=UTC)
    exact = round(moment.timestamp() * 1000)
    second, minute = exact // 1000 * 1000, exact // 60000 * 60000
    assert moment_ms(utc_text(exact)) == exact
    assert moment_ms(exact) == exact == moment_ms(str(exact))
    there = moment + timedelta(minutes=offset_minutes)
    sign, part = ("+", offset_minutes) if offset_minutes >= 0 else ("-", -offset_minutes)
    zoned = f"{there:%Y-%m-%dT%H:%M:%S}.{there.microsecond // 1000:03}{sign}{part // 60:02}:{part % 60:02}"
    assert moment_ms(zoned) == exact
    humanised = f"{moment.year}-{moment.month}-{moment.day}"
    assert moment_ms(f"{humanised}@{moment:%Hh%Mm%Ss}{moment.microsecond // 1000}ms") == exact
    assert moment_ms(f"{humanised} @{moment:%Hh %Mm %Ss} {moment.microsecond // 1000}ms") == exact
    assert moment_ms(compact_text(exact)) == second
    hour = f"{moment.hour % 12 or 12}:{moment.minute:02}{'am' if moment.hour < 12 else 'pm'}"
    assert moment_ms(f"{moment:%B} {moment.day}, {moment.year} {hour}") == minute


@given(st.one_of(st.text(max_size=60), st.floats(), st.integers(), st.from_regex(r"\d{4}-\d{2}-\d{2}[T ]\d\d:\d\d.*")))
def test_nothing_makes_it_fail(value: object) -> None:
    found = moment_ms(value)
    assert found is None or 0 <= found <= 253_402_300_799_999
