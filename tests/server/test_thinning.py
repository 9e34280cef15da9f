"""Thinning of backups: what stays is what the rules say, however often and whenever it is done."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import example, given
from hypothesis import strategies as st

from tellback_server.thinning import DAY_MS, HOUR_MS, Policy, Stored, kept, make_room

NOW_MS = int(datetime(2026, 7, 15, 12, 30, tzinfo=UTC).timestamp() * 1000)
POLICY = Policy()
moments = st.lists(
    st.one_of(
        st.integers(NOW_MS - 2 * HOUR_MS, NOW_MS), st.integers(NOW_MS - 3 * DAY_MS, NOW_MS),
        st.integers(NOW_MS - 900 * DAY_MS, NOW_MS + HOUR_MS),
    ),
    unique=True, max_size=60,
)


def at(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp() * 1000)  # type: ignore[arg-type]


def test_each_age_keeps_what_its_rule_says_z5() -> None:
    """[Z5]: all of the last hour, then the last of the hour, the day, the month."""
    hour = [NOW_MS - minutes * 60_000 for minutes in (1, 2, 59)]
    day = [at(2026, 7, 15, 3, 10), at(2026, 7, 15, 3, 50), at(2026, 7, 15, 4, 5)]
    month = [at(2026, 7, 10, 1), at(2026, 7, 10, 23), at(2026, 7, 9, 5)]
    older = [at(2026, 3, 1), at(2026, 3, 31, 23), at(2025, 3, 2)]

    staying = kept([*hour, *day, *month, *older], NOW_MS, POLICY)

    assert staying == {*hour, day[1], day[2], month[1], month[2], older[1], older[2]}


def test_an_only_one_stays_whatever_its_age_and_a_clock_set_back_thins_nothing_z5() -> None:
    """[Z5]"""
    assert kept([5], NOW_MS, POLICY) == {5}
    future = [NOW_MS + DAY_MS * day for day in range(1, 9)]
    assert kept(future, NOW_MS, POLICY) == set(future)
    assert kept([1 << 60, -(1 << 60)], NOW_MS, POLICY) == {1 << 60, -(1 << 60)}


@given(moments)
@example([])
def test_the_newest_stays_and_doing_it_again_changes_nothing_z5(taken_ms: list[int]) -> None:
    """[Z5]"""
    staying = kept(taken_ms, NOW_MS, POLICY)

    assert staying <= set(taken_ms)
    assert not taken_ms or max(taken_ms) in staying
    assert kept(staying, NOW_MS, POLICY) == staying


@given(moments, st.lists(st.integers(0, 400 * DAY_MS), max_size=5))
def test_it_does_not_matter_how_often_it_was_done_before_z5(taken_ms: list[int], later_ms: list[int]) -> None:
    """[Z5]: thinned at any moments in between, the end is that of thinning once."""
    end_ms = NOW_MS + max(later_ms, default=0)
    staying = set(taken_ms)
    for moment in sorted(later_ms):
        staying = kept(staying, NOW_MS + moment, POLICY)

    assert kept(staying, end_ms, POLICY) == kept(taken_ms, end_ms, POLICY)


@given(moments, st.integers(0, 5 * DAY_MS))
def test_no_gap_is_wider_than_the_rule_says_z5(taken_ms: list[int], ago_ms: int) -> None:
    """[Z5]: of any hour of the last day in which there was a backup, one is there."""
    staying = kept(taken_ms, NOW_MS, POLICY)
    for moment in taken_ms:
        if NOW_MS - moment < 23 * HOUR_MS:
            assert any(one // HOUR_MS == moment // HOUR_MS and one >= moment for one in staying)
    assert {one for one in taken_ms if 0 <= NOW_MS - one < HOUR_MS} <= staying
    del ago_ms


def stored(owner: str, taken_ms: int, **files: int) -> Stored:
    return Stored(owner=owner, taken_ms=taken_ms, name=str(taken_ms), files=files)


def test_room_is_made_by_the_oldest_and_never_by_an_owners_last_z6() -> None:
    """[Z6]: names that begin alike, or that an old program wrote alike, are different owners."""
    bob = [stored("bob", 1, a=100), stored("bob", 3, b=100)]
    smith = [stored("bob_smith", 2, a=100), stored("bob_smith", 4, c=100)]
    crowd = make_room([*bob, *smith, stored("アリス", 0, a=100)], 300)

    assert (crowd.going, crowd.size_bytes) == ([bob[0], smith[0]], 300)
    none = make_room([*bob, *smith, stored("アリス", 0, a=100)], 10)
    assert (none.going, none.size_bytes) == ([bob[0], smith[0]], 300)


def test_a_file_that_another_backup_needs_gives_no_room_z6() -> None:
    """[Z6]"""
    chain = [stored("a", 1, big=900, small=1), stored("a", 2, big=900, other=1), stored("a", 3, new=10)]

    assert [one.taken_ms for one in make_room(chain, 905).going] == [1, 2]
    assert make_room(chain, 912).going == []
    assert make_room(chain, 911).going == chain[:1]


owners = st.sampled_from(["bob", "bob_smith", "Bob", "боб", "アリス"])
many = st.lists(
    st.builds(
        lambda owner, taken, sizes: stored(owner, taken, **sizes), owners, st.integers(0, 50),
        st.dictionaries(st.sampled_from("abcdef"), st.just(7), min_size=1, max_size=3),
    ),
    max_size=30, unique_by=lambda one: (one.owner, one.taken_ms),
)


@given(many, st.integers(0, 300))
def test_the_bound_is_held_or_only_last_ones_are_left_z6(backups: list[Stored], bound: int) -> None:
    """[Z6]"""
    crowd = make_room(backups, bound)
    staying = [one for one in backups if one not in crowd.going]

    assert {one.owner for one in staying} == {one.owner for one in backups}
    for owner in {one.owner for one in backups}:
        newest = max((one for one in backups if one.owner == owner), key=lambda one: one.taken_ms)
        assert newest in staying
    size = sum({(one.owner, file): size for one in staying for file, size in one.files.items()}.values())
    assert size == crowd.size_bytes
    assert size <= bound or len(staying) == len({one.owner for one in staying})
    assert make_room(staying, bound).going == []
