"""Pages of what changes between them; pure."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tellback_protocol.errors import Refused
from tellback_server.paging import Cursor, Key, Rows, page_of_names, read_cursor

NAMES = st.sampled_from([f"chat {number}" for number in range(12)])
TIMES = st.integers(0, 5)


def page(chats: dict[str, int], live: set[str], cursor: Cursor | None, limit: int) -> tuple[list[str], Cursor | None]:
    """One page as the catalog fills it."""
    stored = sorted((when, name) for name, when in chats.items())
    keys = [(chats[name], name) for name in live if name in chats]
    rows = Rows(stored, keys, {name for _, name in keys})
    at = rows.start("asked") if cursor is None else cursor
    told: list[str] = []
    for key, behind in rows.after(at):
        if len(told) == limit:
            return told, read_cursor(at.encoded(), "asked")
        told.append(key[1])
        at = behind
    return told, None


@given(st.dictionaries(NAMES, TIMES), st.sets(NAMES), st.integers(1, 5))
def test_without_changes_each_chat_is_told_once_the_newest_first(
    chats: dict[str, int], live: set[str], limit: int
) -> None:
    """[I5] Whatever is live, however long a page is."""
    told: list[str] = []
    cursor: Cursor | None = None
    while True:
        names, cursor = page(chats, live, cursor, limit)
        told += names
        if cursor is None:
            break
        assert len(names) == limit
    assert told == [name for _, name in sorted(((when, name) for name, when in chats.items()), reverse=True)]


@given(
    st.dictionaries(NAMES, TIMES, min_size=1), st.integers(1, 4),
    st.lists(st.lists(st.tuples(NAMES, st.sampled_from(["change", "remove"])), max_size=3), max_size=6),
)
def test_with_changes_nothing_that_stays_is_lost_and_what_did_not_change_is_told_once(
    chats: dict[str, int], limit: int, changes: list[list[tuple[str, str]]]
) -> None:
    """[I5] Changes make a chat newer than everything before, as clocks do; between any two pages."""
    now = 10
    told: list[str] = []
    changed: set[str] = set()
    cursor: Cursor | None = None
    steps = iter(changes)
    while True:
        names, cursor = page(chats, set(), cursor, limit)
        told += names
        if cursor is None:
            break
        for name, what in next(steps, []):
            now += 1
            changed.add(name)
            if what == "change":
                chats[name] = now
            else:
                chats.pop(name, None)
    assert set(chats) <= set(told), "nothing is lost"
    for name in chats.keys() - changed:
        assert told.count(name) == 1


@pytest.mark.parametrize(
    "text", ["", "=", "a", "W10", "é", base64.urlsafe_b64encode(b'["asked",[1,"a"],[1,"a"],null,-1]').decode()]
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    """[I5] Never an exception of ours."""
    with pytest.raises(Refused) as refused:
        read_cursor(text, "asked")
    assert refused.value.code == "bad-frame"


def test_a_cursor_may_stand_inside_an_entry() -> None:
    """[I8] It comes next again, with what was told of it, also when it is the one that changed meanwhile."""
    keys: list[Key] = [(1, "a"), (2, "b"), (3, "c")]
    rows = Rows(keys, (), ())
    first = rows.start("asked")
    assert [key for key, _ in rows.after(rows.inside(first, (3, "c"), 7))] == [(3, "c"), (2, "b"), (1, "a")]
    at = next(behind for key, behind in rows.after(first) if key == (3, "c"))
    inside = rows.inside(at, (2, "b"), 4)
    assert (inside.within, inside.inner) == ((2, "b"), 4)
    assert [key for key, _ in rows.after(inside)] == [(2, "b"), (1, "a")]
    later = Rows([*keys, (9, "d"), (10, "e")], (), ())
    upward = next(behind for key, behind in later.after(at) if key == (1, "a"))
    above = list(later.after(upward))
    assert [key for key, _ in above] == [(9, "d"), (10, "e")]
    inside = later.inside(above[0][1], (10, "e"), 2)
    assert [key for key, _ in later.after(inside)] == [(10, "e")]


@given(st.lists(st.sets(NAMES), min_size=1, max_size=8), st.integers(1, 5), st.dictionaries(NAMES, st.integers(0, 9)))
def test_names_that_stay_are_told_once_whatever_comes_and_goes(
    moments: list[set[str]], limit: int, sizes: dict[str, int]
) -> None:
    """[I15] Each page is made of what is there then; it has at least one name, and no more than its bytes."""
    told: list[str] = []
    cursor: str | None = None
    seen: list[set[str]] = []
    while True:
        there = moments[min(len(seen), len(moments) - 1)]
        seen.append(there)
        page, cursor = page_of_names(there, "asked", cursor, limit, 10, lambda name: sizes.get(name, 3))
        assert len(page) <= limit
        assert len(page) <= 1 or sum(sizes.get(name, 3) for name in page) <= 10
        told.extend(page)
        if cursor is None:
            break
        assert page
    assert told == sorted(set(told)), "in order, none twice"
    assert set.intersection(*seen) <= set(told)
