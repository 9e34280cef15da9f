"""The parser of server-sent events: every cut, every line end, every lenience."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tellback_server.sse import SseEvent, SseParser, SseTooLarge

LETTERS = st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"])


def parsed(*chunks: bytes, bytes_max: int = 1000) -> list[SseEvent]:
    parser = SseParser(bytes_max)
    return [event for chunk in chunks for event in parser.feed(chunk)] + parser.finish()


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [SseEvent(b"a"), SseEvent(b"b")]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [SseEvent(b"a"), SseEvent(b"b")]),
        (b"data: a\r\rdata: b\r\r", [SseEvent(b"a"), SseEvent(b"b")]),
        (b"data:a\ndata: b\ndata:  c\n\n", [SseEvent(b"a\nb\n c")]),
        (b"event: error\ndata: a\n\ndata: b\n\n", [SseEvent(b"a", "error"), SseEvent(b"b")]),
        (b": keep-alive\n\n:\n\ndata: a\n: in between\n\n", [SseEvent(b"a")]),
        (b"id: 7\nretry: 10\n\ndata\n\ndata:\n\ndata: a\n\n", [SseEvent(b"a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [SseEvent(b"a")]),
        (b"data: a", [SseEvent(b"a")]),
        (b"data: a\n", [SseEvent(b"a")]),
        (b'data: a\n\n{"b": 1}\n', [SseEvent(b"a"), SseEvent(b'{"b": 1}')]),
        (b'error: {"code": 1}\n\n', [SseEvent(b'{"code": 1}', "error")]),
        (b"", []),
        (b"\n\n\r\n", []),
        ("data: é😀\n\n".encode(), [SseEvent("é😀".encode())]),
    ],
)
def test_events_are_the_same_wherever_the_stream_is_cut(stream: bytes, events: list[SseEvent]) -> None:
    assert parsed(stream) == events
    assert parsed(*(stream[i : i + 1] for i in range(len(stream)))) == events
    for at in range(len(stream)):
        assert parsed(stream[:at], stream[at:]) == events


@given(st.lists(st.text(LETTERS, min_size=1), max_size=6), st.data())
def test_any_cut_of_any_text_gives_the_same_events(texts: list[str], data: st.DataObject) -> None:
    ends = st.sampled_from(["\n", "\r\n", "\r"])
    stream = "".join(f"data: {text}{data.draw(ends)}{data.draw(ends)}" for text in texts).encode()
    # CR followed by LF is one line end, so an event may not be closed there; two of a kind always close it.
    whole = parsed(stream, bytes_max=1 << 20)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parsed(*chunks, bytes_max=1 << 20) == whole
    assert "\n".join(event.data.decode() for event in whole) == "\n".join(texts)


@pytest.mark.parametrize(
    "chunks", [[b"data: " + b"x" * 100], [b"data: 1\n"] * 60, [b"x"] * 200, [b"data: " + b"x" * 100 + b"\n\n"]]
)
def test_nothing_grows_without_bound(chunks: list[bytes]) -> None:
    with pytest.raises(SseTooLarge):
        parsed(*chunks, bytes_max=99)


def test_many_events_are_no_large_event() -> None:
    assert len(parsed(*[b"data: " + b"x" * 90 + b"\n\n"] * 500, b": " + b"y" * 90 + b"\n", bytes_max=99)) == 500
