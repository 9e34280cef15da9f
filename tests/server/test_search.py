"""Search and summaries against the parser; pure."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tellback_protocol.catalog_frames import FoundMessage
from tellback_server.search import Query, Scan
from tellback_server.store.chat_summary import summarize
from tellback_server.store.jsonl import parse_chat

LINES = st.lists(st.sampled_from([
    b'{"chat_metadata":{"main_chat":"M"}}', b'{"metadata":{}}', b'{"mes":"needle"}', b'{"mes":"hay"}', b"", b" \t",
    b'{"id":"x","mes":"Needle \\u006eeedle"}', b'{"id":"x","content":"hay needle"}', b"{", b"42", b"null", b"\x00\x00",
    b'{"mes":"\xff needle"}', '{"mes":"nadel ÄÖÜ ﬁ needle\u2028"}'.encode(), b'{"mes":"NEEDLE"}\r', b"\xef\xbb\xbf",
    b'{"mes":[{"text":"needle"}],"x":NaN}', b'{"content":["nee","dle needle"]}', b'{"name":"needle","mes":1}',
    b'{"mes":"half \\ud83d needle"}', b'{"user_name":"u","mes":"needle"}', b'{"\\u0069d":"y","mes":"needle"}',
]), max_size=12)


@given(LINES, st.booleans(), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_a_summary_and_a_search_see_the_messages_that_the_parser_sees(
    lines: list[bytes], headed: bool, end: bytes, ended: bool
) -> None:
    """[I3] [I7] The same count, the same damage, and the ids that opening the chat gives."""
    data = end.join(lines) + (end if ended else b"")
    parsed = parse_chat(data, headed=headed)
    summary = summarize(data, headed=headed)
    assert summary.count == len(parsed.messages)
    assert summary.damaged == bool(parsed.damage)
    query, chat = Query("needle"), "character:A/b" if headed else "group:b"
    from_file: list[FoundMessage] = []
    from_memory: list[FoundMessage] = []
    assert Scan.of_file(query, chat, data).run(from_file, 1000, lambda: False)
    assert Scan.of_lines(query, chat, parsed.messages.items()).run(from_memory, 1000, lambda: False)
    assert from_file == from_memory
    ids = list(parsed.messages)
    assert all(ids[hit.index] == hit.message for hit in from_file if isinstance(hit.index, int))
    said = [hit.index for hit in from_file]
    assert all(
        (index in said) == (b"eedle" in line.lower() and b"\x00" not in line)
        for index, line in enumerate(parsed.messages.values())
    )


TEXT = st.text(alphabet="aAbBßSsſﬁFfiIİıKK😀ά Σσς\u0301", max_size=30)


@given(TEXT, st.text(alphabet="aAbBßSsſﬁfIİkK😀άΣς", min_size=1, max_size=4))
def test_ranges_point_to_what_folds_to_the_word(text: str, word: str) -> None:
    """[I7] For every text: found exactly when the folded text holds the word, and each range holds a piece of it."""
    query = Query(word)
    line = json.dumps({"mes": text}).encode()
    found: list[FoundMessage] = []
    Scan.of_lines(query, "group:x", [("id", line)]).run(found, 10, lambda: False)
    is_there = all(part in text.casefold() for part in query.words)
    assert bool(found) == is_there
    for hit in found:
        units = hit.snippet.encode("utf-16-le")
        assert hit.ranges
        assert hit.ranges == sorted(hit.ranges)
        for start, end in hit.ranges:
            piece = units[2 * start : 2 * end].decode("utf-16-le").casefold()
            assert any(part in piece for part in query.words)


@pytest.mark.parametrize(
    ("query", "text", "is_found"),
    [
        ("a b", "b then a", True), ("a  a", "only one a", True), ("A", "a", True), ("ss", "Straße", True),
        ("straße", "STRASSE", True), ("fi", "ﬁne", True), ("k", "K", True), ("é", "e\u0301", False),
        ('say "hi"', 'to say "hi"', True), ("a/b", "a/b", True), ("\\", "back\\slash", True),
        ("tab\there", "tab here", True),
    ],
)
def test_words(query: str, text: str, is_found: bool) -> None:
    """[I7] Casefolded, not normalised: what looks alike and is written otherwise is another text."""
    found: list[FoundMessage] = []
    for line in (json.dumps({"mes": text}), json.dumps({"mes": text}, ensure_ascii=False)):
        Scan.of_lines(Query(query), "group:x", [("id", line.encode())]).run(found, 10, lambda: False)
    assert len(found) == (2 if is_found else 0)


def test_a_scan_goes_on_where_it_stopped() -> None:
    """[I8] At the limit and at the bound; the same hits whatever the steps are."""
    lines = [json.dumps({"mes": f"{'needle' if index % 5 == 0 else 'hay'} {index}"}).encode() for index in range(500)]
    data = b"\n".join(lines)
    whole: list[FoundMessage] = []
    assert Scan.of_file(Query("needle"), "group:x", data).run(whole, 1000, lambda: False)
    assert len(whole) == 100
    for limit, is_over in ((1, False), (7, False), (1000, True)):
        found: list[FoundMessage] = []
        index, rounds = 0, 0
        while True:
            scan = Scan.of_file(Query("needle"), "group:x", data, index)
            is_done = scan.run(found, len(found) + limit, lambda over=is_over: over)  # type: ignore[misc]
            assert scan.index > index or is_done
            index, rounds = scan.index, rounds + 1
            if is_done:
                break
        assert found == whole
        assert rounds > 5
