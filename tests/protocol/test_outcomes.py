"""What is kept of the ops of one session."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tellback_protocol.ids import Version
from tellback_protocol.outcomes import OUTCOMES_MAX, Outcome, SessionOps
from tellback_protocol.past import Past


def outcome(op: int) -> Outcome:
    return Outcome("ack", op, b'"n":%d' % op, str(op))


@given(st.lists(st.one_of(st.integers(1, 700).map(lambda gap: (gap, 1)), st.integers(1, 300).map(lambda n: (1, n)))))
def test_o7_the_last_256_are_kept_and_nothing_is_known_of_what_was_left_out(steps: list[tuple[int, int]]) -> None:
    ops, wanted = SessionOps(), dict[int, Outcome]()
    for gap, count in steps:
        if count == 1:
            op = ops.last + gap
            ops.add(op, outcome(op), 5)
            wanted[op] = outcome(op)
        else:
            run = [outcome(op) for op in range(ops.last + 1, ops.last + 1 + count)]
            ops.add_short(run, 5)
            wanted |= {one.fingerprint: one for one in run}
    wanted = {op: one for op, one in wanted.items() if op > ops.last - OUTCOMES_MAX}
    assert dict(ops.outcomes()) == wanted
    assert ops.last == max(wanted, default=0)
    for op in range(max(0, ops.last - 2 * OUTCOMES_MAX), ops.last + 3):
        assert ops.outcome(op) == wanted.get(op)


def test_o7_what_was_forgotten_leaves_the_number() -> None:
    ops = SessionOps()
    ops.add_short([outcome(1), outcome(2)], 5)
    ops.forget()
    assert (ops.last, ops.count, ops.outcome(2)) == (2, 0, None)
    ops.add(3, outcome(3), 5)
    assert dict(ops.outcomes()) == {3: outcome(3)}


def test_o2_the_commit_of_a_plain_append_tells_its_ack() -> None:
    version = Version(3, 8, "00000000-0000-8000-8000-00000000000f")
    past = Past(version, b"", ("a",), b'{"id":"00000000000000aa","mes":"x"}', 77)
    ops = SessionOps()
    ops.add_short([past], 5)
    told = ops.outcome(1)
    assert told == Outcome(
        "ack", 77,
        b'"version":{"epoch":3,"seq":8,"integrity":"00000000-0000-8000-8000-00000000000f"},"durable":"fsync",'
        b'"messages":["00000000000000aa"]',
        version.integrity,
    )
