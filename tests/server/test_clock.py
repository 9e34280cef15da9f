"""Clock: ids that are UUIDs, and repeatable ones under a seed."""

from __future__ import annotations

import uuid

from tellback_server import clock as clock_module
from tellback_server.clock import Clock, system_token


def test_ids_are_version_four_uuids_and_do_not_repeat() -> None:
    clock = Clock()
    ids = [clock.uuid4() for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    for text in ids[:1000]:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 4, uuid.RFC_4122)
    # Every bit that is free takes both values.
    numbers = [uuid.UUID(text).int for text in ids]
    ones = [sum(number >> bit & 1 for number in numbers) for bit in range(128)]
    assert [bit for bit in range(128) if ones[bit] in (0, len(numbers))] == [62, 63, 76, 77, 78, 79]


def test_integrities_are_version_eight_uuids_also_when_the_count_begins_anew() -> None:
    clock = Clock()
    ids = [clock.integrity() for _ in range(1000)]
    clock._count = clock_module._COUNT_MAX - 3
    ids += [clock.integrity() for _ in range(10)]
    assert len(set(ids)) == len(ids)
    assert len({text[:24] for text in ids}) == 2
    for text in ids:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 8, uuid.RFC_4122)


def test_a_message_id_is_sixteen_digits_of_64_random_bits() -> None:
    clock = Clock()
    ids = {clock.message_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert {len(text) for text in ids} == {16}
    assert {digit for text in ids for digit in text} == set("0123456789abcdef")


def test_two_clocks_differ_and_a_seed_makes_them_equal() -> None:
    one, two = Clock(), Clock()
    assert one.uuid4() != two.uuid4()
    one.reseed(7)
    two.reseed(7)
    assert [one.uuid4() for _ in range(5)] == [two.uuid4() for _ in range(5)]
    assert one.random_bits(64) == two.random_bits(64) < 1 << 64


def test_times_have_the_units_they_say() -> None:
    clock = Clock()
    assert 1_600_000_000_000 < clock.now_ms() < 10_000_000_000_000
    before = clock.monotonic_s()
    assert 0 <= clock.monotonic_s() - before < 10


def test_a_token_is_sixteen_digits() -> None:
    assert len(system_token()) == 16
    assert system_token() != system_token()
