"""Chat files in bytes: parse, render, append (STORAGE "User files" F2 to F5)."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tellback_protocol.chat import with_id
from tellback_protocol.ids import derived_message_id
from tellback_protocol.values import loads
from tellback_server.store.jsonl import ParsedChat, new_header, parse_chat, render, render_append
from tests.support.real_data import COUNTS, real_user

HEADER = (
    b'{"user_name":"unused","character_name":"unused","create_date":"2025-1-5@13h05m09s123ms",'
    b'"chat_metadata":{"a":1}}'
)
ONE = b'{"name":"P","is_user":false,"mes":"one"}'
TWO = b'{"name":"U","is_user":true,"mes":"two"}'
NEW = b'{"id":"new-1","name":"U","is_user":true,"mes":"new"}'


def rendered(parsed: ParsedChat, **changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "messages": parsed.messages, "bare": parsed.bare, "metadata": parsed.metadata, "chat_id": "id", "now_ms": 7,
    }
    arguments.update(changes)
    return render(parsed.image, **arguments).data


def texts(parsed: ParsedChat) -> list[Any]:
    return [loads(line).get("mes") for line in parsed.messages.values()]


# -- the real folder


@pytest.mark.parametrize("path", COUNTS)
def test_real_chats_have_the_counted_messages_and_come_back_byte_for_byte(path: str) -> None:
    """[F2] Every chat that a real SillyTavern wrote."""
    data = (real_user() / path).read_bytes()

    parsed = parse_chat(data, headed=path.startswith("chats/"))

    assert len(parsed.messages) == COUNTS[path]
    assert parsed.damage == []
    assert rendered(parsed) == data
    assert list(parsed.messages.values()) == data.split(b"\n")[1 if parsed.image.header else 0 :]


@pytest.mark.parametrize("path", COUNTS)
def test_real_chats_take_an_append_and_keep_every_other_byte(path: str) -> None:
    """[F2] [F3] What is appended stands behind the old bytes, and nobody's id changes."""
    data = (real_user() / path).read_bytes()
    parsed = parse_chat(data, headed=path.startswith("chats/"))

    block, image = render_append(parsed.image, {"new-1": NEW})
    again = parse_chat(data + block, headed=path.startswith("chats/"))

    assert again.messages == {**parsed.messages, "new-1": NEW}
    assert again.image == image


def test_the_largest_real_chats_cost_little_more_than_their_json() -> None:
    """6 MB, and 3,000 lines: measured at 1.6 and 2.7 times the processor time of reading each line as JSON."""

    def least_s(work: Callable[[], object]) -> float:
        found = []
        for _try in range(5):
            began_s = time.process_time()
            work()
            found.append(time.process_time() - began_s)
        return min(found)

    def read(lines: list[bytes]) -> list[object]:
        return [orjson.loads(line) for line in lines]

    for path, count in COUNTS.items():
        if count in (465, 3000):
            data = (real_user() / path).read_bytes()
            lines = [line for line in data.split(b"\n") if line]
            parsed_s = least_s(partial(parse_chat, data, headed=True))
            assert parsed_s < 8 * least_s(partial(read, lines))


# -- FIELD-FACTS 9.1, a row each

SLUG = "c60e05dd-48f2-4b52-8682-acc155cd5312"
INTEGRITY = b'{"user_name":"unused","character_name":"unused","chat_metadata":{"integrity":"%b"}}' % SLUG.encode()
ROWS: dict[str, tuple[bytes, bool, int, Any]] = {
    "header with integrity": (INTEGRITY + b"\n" + ONE, True, 1, {"integrity": SLUG}),
    "header without integrity": (HEADER + b"\n" + ONE, True, 1, {"a": 1}),
    "header without chat_metadata": (b'{"user_name":"T","character_name":"M","create_date":"x"}\n' + ONE, True, 1, {}),
    "header absent, old group chat": (ONE + b"\n" + TWO, False, 2, {}),
    "header absent, character chat": (ONE + b"\n" + TWO, True, 2, {}),
    "unused names": (HEADER, True, 0, {"a": 1}),
    "BOM": (b"\xef\xbb\xbf" + HEADER + b"\n" + ONE, True, 1, {"a": 1}),
    "CRLF": (HEADER + b"\r\n" + ONE + b"\r\n", True, 1, {"a": 1}),
    "CRLF and LF mixed": (HEADER + b"\r\n" + ONE + b"\n" + TWO + b"\r\n", True, 2, {"a": 1}),
    "blank lines": (b"\n \n" + HEADER + b"\n\n" + ONE + b"\n\t\n" + TWO + b"\n\n", True, 2, {"a": 1}),
    "trailing newline": (HEADER + b"\n" + ONE + b"\n", True, 1, {"a": 1}),
    "no trailing newline": (HEADER + b"\n" + ONE, True, 1, {"a": 1}),
    "zero bytes, group chat without messages": (b"", False, 0, {}),
    "sparse swipe_info": (
        HEADER + b'\n{"mes":"x","swipes":["x","y","z"],"swipe_id":2,"swipe_info":[null,{"extra":{}}]}',
        True, 1, {"a": 1},
    ),
    "swipe_id equal to the number of swipes": (
        HEADER + b'\n{"mes":"x","swipes":["x"],"swipe_id":1}', True, 1, {"a": 1},
    ),
    "swipes without swipe_info": (HEADER + b'\n{"mes":"x","swipes":["x"],"swipe_id":0}', True, 1, {"a": 1}),
    "message without is_system": (HEADER + b'\n{"mes":"x","is_user":false}', True, 1, {"a": 1}),
    "extra missing": (HEADER + b'\n{"mes":"x"}', True, 1, {"a": 1}),
    "extra an array": (HEADER + b'\n{"mes":"x","extra":[]}', True, 1, {"a": 1}),
    "nested chat_metadata": (
        b'{"chat_metadata":{"chat_metadata":{"b":2}}}\n' + ONE, True, 1, {"chat_metadata": {"b": 2}},
    ),
    "CardShark header": (
        b'{"user_name":"User","character_name":"C","character_id":"c-1","timestamp":1,"version":"1.0",'
        b'"chat_metadata":{"chat_id":"C_1","title":"t"}}\n' + ONE, True, 1, {"chat_id": "C_1", "title": "t"},
    ),
    "CardShark metadata header": (
        b'{"metadata":{"chat_id":"C_1"}}\n{"role":"user","content":"hi"}', False, 1, {"chat_id": "C_1"},
    ),
    "role and content with metadata of its own": (b'{"role":"user","content":"hi","metadata":{"x":1}}', True, 1, {}),
    "chat_metadata null": (b'{"user_name":"u","chat_metadata":null}\n' + ONE, True, 1, {}),
    "send_date humanised": (HEADER + b'\n{"mes":"x","send_date":"January 5, 2025 3:12pm"}', True, 1, {"a": 1}),
    "send_date number": (HEADER + b'\n{"mes":"x","send_date":1730462438969}', True, 1, {"a": 1}),
    "send_date with blanks": (HEADER + b'\n{"mes":"x","send_date":"2025-1-5 @13h 05m 09s 123ms"}', True, 1, {"a": 1}),
    "gen_id beyond 64 bits": (
        HEADER + b'\n{"mes":"x","extra":{"gen_id":1336150679574348000123456}}', True, 1, {"a": 1},
    ),
    "half a surrogate pair": (HEADER + b'\n{"mes":"x\\ud83d"}', True, 1, {"a": 1}),
    "__proto__": (HEADER + b'\n{"mes":"x","__proto__":{"polluted":true}}', True, 1, {"a": 1}),
    "id a number": (HEADER + b'\n{"id":5,"mes":"x"}', True, 1, {"a": 1}),
    "id too long": (HEADER + b'\n{"id":"' + b"i" * 200 + b'","mes":"x"}', True, 1, {"a": 1}),
    "line separators inside a line": (HEADER + '\n{"mes":"a\u2028b\u2029c\u0085d\ufeffe"}'.encode(), True, 1, {"a": 1}),
    "nested 500 deep": (HEADER + b'\n{"mes":"x","deep":' + b"[" * 500 + b"]" * 500 + b"}", True, 1, {"a": 1}),
    "10 MB in one line": (HEADER + b'\n{"mes":"' + b"x" * 10_000_000 + b'"}', True, 1, {"a": 1}),
}


@pytest.mark.parametrize("row", ROWS)
def test_what_other_programs_write_is_read_and_kept(row: str) -> None:
    """[F2] [F5] FIELD-FACTS 9.1: nothing here is damage, and untouched it comes back byte for byte."""
    data, headed, count, metadata = ROWS[row]

    parsed = parse_chat(data, headed=headed)

    assert parsed.damage == []
    assert len(parsed.messages) == count
    assert loads(parsed.metadata) == metadata
    assert rendered(parsed) == data


@pytest.mark.parametrize("row", ROWS)
def test_an_append_to_what_other_programs_wrote_changes_no_other_byte(row: str) -> None:
    """[F2] [F3]"""
    data, headed, _count, _metadata = ROWS[row]
    parsed = parse_chat(data, headed=headed)
    if not parsed.image.takes_appends:
        assert rendered(parsed, messages={"new-1": NEW}) == data + NEW
        return

    block, image = render_append(parsed.image, {"new-1": NEW})
    again = parse_chat(data + block, headed=headed)

    assert again.messages == {**parsed.messages, "new-1": NEW}
    assert again.metadata == parsed.metadata
    assert again.image == image
    assert again.image.ends_with_newline == parsed.image.ends_with_newline
    assert rendered(parsed, messages={**parsed.messages, "new-1": NEW}) == data + block


@pytest.mark.parametrize("row", ROWS)
def test_a_metadata_change_keeps_every_line(row: str) -> None:
    """[F2] The header gets the metadata and CardShark's fields; lines keep their bytes."""
    data, headed, _count, _metadata = ROWS[row]
    parsed = parse_chat(data, headed=headed)

    again = parse_chat(rendered(parsed, metadata=b'{"changed":true}'), headed=headed)

    assert loads(again.metadata) == {"changed": True}
    assert again.messages == parsed.messages
    assert again.image.header is not None
    header = loads(again.image.header)
    assert (header["chat_id"], header["timestamp"]) == ("id", 7)
    assert "version" in header
    if parsed.image.header is not None:
        kept = {key: value for key, value in loads(parsed.image.header).items() if key != parsed.image.metadata_key}
        for key in ("chat_id", "timestamp", "chat_metadata"):
            kept.pop(key, None)
        assert {key: header[key] for key in kept} == kept


# -- ids


def test_a_line_without_an_id_is_called_by_its_bytes_and_occurrence() -> None:
    """[F3]"""
    parsed = parse_chat(b"\n".join([HEADER, ONE, TWO, ONE]), headed=True)

    assert list(parsed.messages) == [
        derived_message_id(ONE, 0), derived_message_id(TWO, 0), derived_message_id(ONE, 1),
    ]
    assert parsed.bare == set(parsed.messages)


def test_the_id_of_a_bare_line_does_not_depend_on_its_line_end() -> None:
    """[F3]"""
    assert list(parse_chat(ONE + b"\r\n", headed=True).messages) == list(parse_chat(ONE, headed=True).messages)


def test_of_two_lines_with_one_id_the_second_gets_another() -> None:
    """[F3] It is written into the line when the first one goes, because the file would else be read differently."""
    other = NEW.replace(b"new\"", b"other\"")
    parsed = parse_chat(b"\n".join([HEADER, NEW, other]), headed=True)
    second = derived_message_id(other, 0)

    assert list(parsed.messages) == ["new-1", second]
    assert parsed.bare == {second}
    assert rendered(parsed) == b"\n".join([HEADER, NEW, other])

    alone = rendered(parsed, messages={second: other})

    again = parse_chat(alone, headed=True)
    assert list(again.messages) == [second]
    assert again.messages[second] == with_id(other, second)


def test_an_id_is_written_only_where_the_occurrence_would_change() -> None:
    """[F3] Deleting the first of two equal lines gives the other one its id; everything else keeps its bytes."""
    parsed = parse_chat(b"\n".join([HEADER, ONE, TWO, ONE]), headed=True)
    first, two, second = parsed.messages

    result = render(parsed.image, {two: TWO, second: ONE}, parsed.bare, parsed.metadata, "id", 7)

    assert result.lines == {second: with_id(ONE, second)}
    assert result.data == b"\n".join([HEADER, TWO, with_id(ONE, second)])
    assert list(parse_chat(result.data, headed=True).messages) == [two, second]
    assert first not in parse_chat(result.data, headed=True).messages


def test_half_a_surrogate_pair_is_odd_and_a_whole_one_is_not() -> None:
    """[F5]"""
    data = b'{"id":"half","mes":"\\ud83d"}\n{"id":"whole","mes":"\\ud83d\\ude00"}'
    assert parse_chat(data, headed=True).odd == {"half"}


# -- damage


@pytest.mark.parametrize(
    "line",
    [
        b"garbage", b'{"mes":"torn', b"42", b'"text"', b"[]", b"null", b"true", b"\x00\x00\x00\x00", b"{}{}",
        b'{"mes":NaN}', b'{"mes":"\xff"}', b'{"mes":"a\rb"}', ONE + b"\r" + TWO,
    ],
)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_line_that_is_no_object_is_quarantined_with_its_bytes(line: bytes, where: str) -> None:
    """[F4] The rest is served; nothing is skipped silently, and the bytes stand where they stood."""
    lines = {"first": [line, ONE, TWO], "middle": [ONE, line, TWO], "last": [ONE, TWO, line]}[where]
    data = b"\n".join(lines)

    parsed = parse_chat(data, headed=True)

    assert texts(parsed) == ["one", "two"]
    assert [damage.line for damage in parsed.damage] == [{"first": 1, "middle": 2, "last": 3}[where]]
    assert rendered(parsed) == data


def test_a_header_that_does_not_parse_is_damage_and_no_metadata() -> None:
    """[F4] Fail closed: SillyTavern's issue 5454 lost whole chats by going on."""
    parsed = parse_chat(HEADER[:-5] + b"\n" + ONE, headed=True)

    assert [damage.line for damage in parsed.damage] == [1]
    assert parsed.image.header is None
    assert texts(parsed) == ["one"]


# -- files of our own


def test_a_character_chat_of_zero_bytes_gets_a_header_with_its_first_message() -> None:
    """SillyTavern takes the first line of a character's chat away as the header, whatever it is."""
    parsed = parse_chat(b"", headed=True)
    assert not parsed.image.takes_appends

    again = parse_chat(rendered(parsed, messages={"new-1": NEW}), headed=True)

    assert list(again.messages) == ["new-1"]
    assert again.image.header is not None


@pytest.mark.parametrize("headed", [True, False])
def test_a_message_that_looks_like_a_header_never_becomes_one(headed: bool) -> None:
    """Deleting what stood before it puts a header first, when the file has none."""
    line = b'{"id":"m","user_name":"somebody"}'
    parsed = parse_chat(ONE + b"\n" + line, headed=headed)
    assert list(parsed.messages)[1] == "m"

    again = parse_chat(rendered(parsed, messages={"m": line}), headed=headed)

    assert again.messages == {"m": line}


def test_our_own_header_is_one() -> None:
    parsed = parse_chat(new_header(b'{"a":1}', "id", 7) + b"\n", headed=False)
    assert loads(parsed.metadata) == {"a": 1}
    assert loads(parsed.image.header or b"{}")["chat_id"] == "id"


# -- any bytes

PIECES = st.sampled_from(
    [
        b"", b" ", b"\t", b"\r", HEADER, ONE, TWO, NEW, ONE, b'{"id":"new-1","mes":"twin"}', b'{"id":7,"mes":"n"}',
        b'{"mes":"\\ud800"}', b"\xef\xbb\xbf", b"garbage", b"\x00", b'{"metadata":{}}', b"{}", b"[1]", b"null",
        '{"mes":"\u2028\u0085"}'.encode(), b'{"id":"%b","mes":"one"}' % derived_message_id(ONE, 0).encode(),
        b' {"mes":"blank before"} ', b'{"chat_metadata":{}}',
    ]
)
FILES = st.one_of(
    st.binary(max_size=80),
    st.lists(st.tuples(PIECES, st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \n", b""])), max_size=12).map(
        lambda parts: b"".join(piece + end for piece, end in parts)
    ),
)


@settings(max_examples=600, deadline=None)
@given(FILES, st.booleans())
def test_any_bytes_come_back_and_any_append_is_read_again(data: bytes, headed: bool) -> None:
    """[F2] [F3] Untouched is byte-identical; an append is only behind; nobody's id changes."""
    parsed = parse_chat(data, headed=headed)
    assert rendered(parsed) == data
    if parsed.damage or not parsed.image.takes_appends or "new-9" in parsed.messages:
        return
    line = b'{"id":"new-9","mes":"appended"}'
    block, image = render_append(parsed.image, {"new-9": line})
    further = b'{"id":"new-10","mes":"appended too"}'
    block_too, _image = render_append(image, {"new-10": further})
    again = parse_chat(data + block + block_too, headed=headed)
    assert again.messages == {**parsed.messages, "new-9": line, "new-10": further}
    assert again.metadata == parsed.metadata
    assert rendered(parsed, messages={**parsed.messages, "new-9": line}) == data + block


def test_the_first_of_three_equal_lines_goes_and_the_others_keep_their_ids() -> None:
    """[F2] [F3] [M3] A line that gets its id written into it is no occurrence of what it was."""
    parsed = parse_chat(b'{"mes":"one"}\n' * 3, headed=False)
    first, *others = parsed.messages
    messages = {key: parsed.messages[key] for key in others}
    result = render(parsed.image, messages, parsed.bare - {first}, parsed.metadata, "id", 7)
    again = parse_chat(result.data, headed=False)
    assert list(again.messages) == others


@settings(max_examples=600, deadline=None)
@given(FILES, st.booleans(), st.data())
def test_any_deletion_and_change_is_read_again_under_the_same_ids(
    data: bytes, headed: bool, draw: st.DataObject
) -> None:
    """[F2] [F3] Lines that stay keep id and bytes, unless the id had to be written into them."""
    parsed = parse_chat(data, headed=headed)
    if parsed.damage:
        return
    kept = {key: line for key, line in parsed.messages.items() if draw.draw(st.booleans())}
    changed = {key for key in kept if draw.draw(st.booleans())}
    messages = {
        key: b'{"id":%b,"mes":"changed"}' % orjson.dumps(key) if key in changed else line for key, line in kept.items()
    }
    bare = parsed.bare - changed

    result = render(parsed.image, messages, bare, parsed.metadata, "id", 7)
    again = parse_chat(result.data, headed=headed)

    assert list(again.messages) == list(messages)
    assert again.messages == {**messages, **result.lines}
    assert again.bare == (bare & kept.keys()) - result.lines.keys()
    assert rendered(again) == result.data
    if result.image.takes_appends and "new-9" not in messages:
        block, _image = render_append(result.image, {"new-9": b'{"id":"new-9","mes":"appended"}'})
        assert list(parse_chat(result.data + block, headed=headed).messages) == [*messages, "new-9"]
