"""The short way of an append against the general way, byte for byte."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from tellback_protocol import codec
from tellback_protocol.appending import PlainAppends, append_plain
from tellback_protocol.chat import Chat
from tellback_protocol.decide import Committed, Fresh, decide, install
from tellback_protocol.errors import Refused
from tellback_protocol.fields import OpBase
from tellback_protocol.frames import Damage, Limits
from tellback_protocol.ids import Version
from tellback_protocol.outcomes import OUTCOME_BYTES_MAX, Outcome
from tellback_protocol.past import Past
from tellback_protocol.requests import Append
from tellback_protocol.stream import Stream
from tellback_protocol.values import read_payload

SESSION = "session-of-a-tab-1"
START = "00000000-0000-4000-8000-000000000001"
NEXT = "00000000-0000-8000-8000-00000000000f"
OWNER = codec.chat_json("group:x")


def stream() -> Stream:
    chat = Stream("user", "group:x", "chat", Chat(Version(3, 7, START), b"{}", {"00000000000000aa": b'{"id":"a"}'}))
    chat.session(SESSION)
    return chat


def append(payload: bytes, base: object = "*", op: int = 1, **fields: object) -> Append:
    return Append("group:x", [Raw(payload)], id=5, op=op, base=base, **fields)  # type: ignore[arg-type]


def short(chat: Stream, *requests: Append, seed: int = 1) -> PlainAppends | None:
    integrities = itertools.chain([NEXT], (f"00000000-0000-8000-8000-0000000001{n:02x}" for n in range(256)))
    ids = (f"{(seed + n) & 0xFFFFFFFFFFFFFFFF:016x}" for n in itertools.count())
    return append_plain(
        chat, chat.session(SESSION), b'"session-of-a-tab-1"', list(requests), OWNER, integrities.__next__, ids.__next__,
        99, Limits(),
    )


def count(found: PlainAppends | None) -> int:
    return 0 if found is None else len(found.pasts)


def state(chat: Stream) -> object:
    return (
        chat.head, chat.chat.version, dict(chat.chat.messages),
        [(past.version, past.core, past.size_bytes, past.targets) for past in chat.history],
        chat.history_bytes,
        {name: (ops.last, ops.used_ms, dict(ops.outcomes())) for name, ops in chat.sessions.items()},
    )


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=6), values, max_size=5), st.sampled_from(["*", START]), st.integers(0, 2**64))
def test_e8_the_short_way_gives_the_same_bytes_as_the_general_way(
    message: dict[str, object], base: str, seed: int
) -> None:
    one, other = stream(), stream()
    request = append(msgspec.json.encode(message), base)
    found = short(one, request, seed=seed)
    if found is None:
        assert state(one) == state(stream()), "nothing was changed"
        return
    decision = decide(other, request, SESSION, Fresh(NEXT, seed, 99), Limits())
    assert isinstance(decision, Committed)
    assert found.records == [decision.record]
    assert found.acks == [codec.answer("ack", request.id, OWNER, 1, decision.outcome.body)]
    (past,) = found.pasts
    assert (past.version, past.core) == (decision.version, decision.core)
    assert found.ids == [f"{seed & 0xFFFFFFFFFFFFFFFF:016x}"] == list(one.chat.messages)[-1:]
    assert past.frame(OWNER) == decision.frame(OWNER)
    install(other, SESSION, 1, decision, 99)
    assert other.history[-1].frame(OWNER) == decision.frame(OWNER)
    assert state(one) == state(other)


messages = st.dictionaries(st.text(max_size=6), values, max_size=5)


@given(st.lists(st.tuples(messages, st.booleans(), st.booleans()), min_size=2, max_size=6), st.integers(0, 2**64))
def test_e8_a_run_gives_the_same_bytes_as_the_general_way(
    run: list[tuple[dict[str, object], bool, bool]], seed: int
) -> None:
    """Each on any base or on the one before it, asked with a number or without."""
    one, other = stream(), stream()
    integrities = [NEXT, *(f"00000000-0000-8000-8000-0000000001{n:02x}" for n in range(len(run)))]
    requests = [
        append(msgspec.json.encode(message), "*" if any_base else [START, *integrities][n], op=n + 1)
        for n, (message, any_base, _is_asked) in enumerate(run)
    ]
    for request, (_message, _any_base, is_asked) in zip(requests, run, strict=True):
        request.id = 5 if is_asked else None
    found = short(one, *requests, seed=seed)
    for n, request in enumerate(requests[: count(found)]):
        decision = decided(other, request, integrities[n], seed + n)
        assert found is not None
        assert found.records[n] == decision.record
        assert found.acks[n] == codec.answer("ack", request.id, OWNER, n + 1, decision.outcome.body)
        assert found.pasts[n].frame(OWNER) == decision.frame(OWNER)
        assert found.ids[n] == f"{(seed + n) & 0xFFFFFFFFFFFFFFFF:016x}"
        install(other, SESSION, n + 1, decision, 99)
    assert state(one) == state(other)


@pytest.mark.parametrize(
    "request_",
    [
        append(b'{"id":"mine","mes":"x"}'),
        append(b"{}"),
        append(b'{"mes":\n"x"}'),
        append(b'"text"'),
        append(b' {"mes":"x"}'),
        append(b'{"mes":"x"}', base=OpBase(1)),
        append(b'{"mes":"x"}', base=None),
        append(b'{"mes":"x"}', base="00000000-0000-4000-8000-00000000dead"),
        append(b'{"mes":"x"}', op=2),
        append(b'{"mes":"x"}', force=True),
        append(b'{"mes":"x"}', on_conflict="rebase"),
        Append("group:x", [Raw(b'{"a":1}'), Raw(b'{"b":1}')], op=1, base="*"),
        Append("group:x", [], op=1, base="*"),
    ],
)
def test_e8_what_is_not_plain_is_left_alone(request_: Append) -> None:
    chat = stream()

    assert short(chat, request_) is None
    assert state(chat) == state(stream())
    behind = msgspec.structs.replace(request_, op=3 if request_.op == 2 else 2)
    found = short(chat, append(b'{"mes":"1"}'), behind, append(b'{"mes":"3"}', op=3))
    assert count(found) == 1, "nor behind a plain one"


def test_e8_a_taken_id_and_a_damaged_chat_are_left_to_the_general_way() -> None:
    chat = stream()
    assert short(chat, append(b'{"mes":"x"}'), seed=0xAA) is None
    chat.damage = [Damage(3, "no JSON")]
    assert short(chat, append(b'{"mes":"x"}')) is None


@pytest.mark.parametrize(
    "payload",
    [
        b'{"a":' + b"[" * 70 + b"]" * 70 + b"}",
        b'{"a":18446744073709551616}',
        b'{"a":1e400}',
        b'{"a":-1E+400}',
        b'{"a":' + b"1" * 400 + b".5}",
        b'{"a":"\\ud800"}',
        b'{"\\udc00":1}',
        b'{"a":01}',
        b'{"a":NaN}',
        b'{"a":"\t"}',
        b'{"a":1}}',
        b'{"\\u0069d":1}',
    ],
)
def test_e8_a_payload_that_is_refused_or_has_an_id_is_left_alone(payload: bytes) -> None:
    chat = stream()

    assert short(chat, append(payload)) is None
    assert state(chat) == state(stream())
    among = [append(b'{"mes":"1"}'), append(payload, op=2), append(b'{"mes":"3"}', op=3)]
    assert count(short(chat, *among)) == 1, "one among others takes only those behind it along"


def test_e8_the_brackets_of_many_are_not_counted_together() -> None:
    deep = b'{"a":' + b"[" * 62 + b"]" * 62 + b"}"
    assert count(short(stream(), *[append(deep, op=1 + n) for n in range(3)])) == 3
    too_deep = b'{"a":' + b"[" * 65 + b"]" * 65 + b"}"
    bare = [append(b"null", op=2 + n) for n in range(40)]
    assert short(stream(), append(too_deep), *bare) is None, "what has no brackets lends none"


def test_e8_what_is_harmless_at_a_glance_is_what_the_reader_takes() -> None:
    """Numbers at every limit, in all spellings: taken here only when `read_payload` takes them."""
    digits = ["1", "-1", "0", "1" * 18, "1" * 19, str(2**64 - 1), str(2**64), "-" + str(2**63), "-" + str(2**63 + 1)]
    exponents = ["", "e1", "E99", "e+99", "e308", "e309", "e+308", "E+309", "e-400", "e0400", "e+0000400"]
    for number in (whole + part + exponent for whole in digits for part in ("", ".5") for exponent in exponents):
        payload = b'{"a":[%b,"x"]}' % number.encode()
        taken = short(stream(), append(payload))
        try:
            read_payload(payload, "/messages/0")
        except Refused:
            assert not taken, number
        else:
            assert taken or "e" in number.lower() or len(number) >= 19, number


def test_e8_several_are_the_same_as_one_after_the_other() -> None:
    one, other = stream(), stream()
    first, second = append(b'{"mes":"1"}', START), append(b'{"mes":"2"}', NEXT, op=2)

    found = short(one, first, second, append(b'{"mes":"3"}', START, op=3), append(b'{"mes":"4"}', op=4))

    assert count(found) == 2, "the third stands on an old base, and the fourth is behind it"
    install(other, SESSION, 1, decided(other, first, NEXT, 1), 99)
    install(other, SESSION, 2, decided(other, second, "00000000-0000-8000-8000-000000000100", 2), 99)
    assert state(one) == state(other)


def test_o11_the_outcome_of_a_long_message_does_not_hold_on_to_it() -> None:
    chat = stream()
    long = b'{"mes":"%b"}' % (b"x" * OUTCOME_BYTES_MAX)
    assert count(short(chat, append(b'{"mes":"1"}'), append(long, op=2), append(b'{"mes":"3"}', op=3))) == 3

    kept = list(chat.sessions[SESSION]._kept)
    assert [type(one) for one in kept] == [Past, Outcome, Past]
    other = stream()
    for op, integrity in enumerate((NEXT, *(f"00000000-0000-8000-8000-0000000001{n:02x}" for n in range(2))), 1):
        request = append((b'{"mes":"1"}', long, b'{"mes":"3"}')[op - 1], op=op)
        install(other, SESSION, op, decided(other, request, integrity, op), 99)
    assert state(chat) == state(other)


def decided(chat: Stream, request: Append, integrity: str, seed: int) -> Committed:
    decision = decide(chat, request, SESSION, Fresh(integrity, seed, 99), Limits())
    assert isinstance(decision, Committed)
    return decision
