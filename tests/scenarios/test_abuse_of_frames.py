"""Hostile and mistaken frames against the whole server (RELIABILITY's abuse matrix): a typed error or a defined close.

The cases are data: before hello, after hello, and whole conversations out of order. After each of them another tab goes
on as if nothing had happened, and nobody logs a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.exceptions import ConnectionClosed

from tellback_server.app import App
from tests.support.raw_client import RawClient
from tests.support.server import TabClient, joined, new_session, running
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"
ANSWER_S = 8.0
"""Less than the ten seconds after which the server would have closed anyway."""
KNOWN = "11111111-2222-4333-8444-555555555555"
MIB = 1 << 20


def hello(**fields: Any) -> bytes:
    return json.dumps({"type": "hello", "protocol": 1, "session": new_session(), "token": None, **fields}).encode()


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    """A server with a bystander: served before and after, and nothing worse than a warning in the log."""
    with capture_logs() as logs:
        async with running(tmp_path, log_segment_bytes=1 << 20) as server:
            bystander = await TabClient.join(server.urls[0])
            await bystander.open(CHAT, create=True)
            yield server
            assert (await bystander.append(CHAT, "still here"))["type"] == "ack"
    worse = [line for line in logs if line["log_level"] in ("error", "critical") or "exc_info" in line]
    assert worse == []
    assert all(len(str(value)) < 2000 for line in logs for value in line.values())


FIRST = {
    # What comes instead of a good hello, and the code of the error. [C1] [C2] [N5]
    "ping": (b'{"type":"ping"}', "hello-required"),
    "open": (b'{"type":"open","chat":"group:x","since":null}', "hello-required"),
    "unknown type": (b'{"type":"subscribe"}', "unknown-type"),
    "no json": (b"hello", "bad-json"),
    "empty": (b"", "bad-json"),
    "array": (b"[]", "bad-json"),
    "no type": (b"{}", "bad-frame"),
    "two frames": (b'{"type":"ping"}{"type":"ping"}', "bad-json"),
    "another protocol": (hello(protocol=2), "unsupported-protocol"),
    "no protocol": (b'{"type":"hello","session":"0123456789abcdef","token":null}', "bad-frame"),
    "short session": (hello(session="short"), "session-invalid"),
    "long session": (hello(session="x" * 65), "session-invalid"),
    "session with a space": (hello(session="0123456789 abcdef"), "session-invalid"),
    "session of letters with marks": (hello(session="Ä" * 20), "session-invalid"),
    "session is a number": (hello(session=12345678901234567), "bad-frame"),
    "session is null": (hello(session=None), "bad-frame"),
    "token is a list": (hello(token=["x"]), "bad-frame"),
}


@pytest.mark.parametrize("name", FIRST)
async def test_R36_what_is_no_hello_ends_with_an_error_and_4500(app: App, name: str) -> None:
    """[C1]"""
    data, code = FIRST[name]
    raw = await RawClient.connect(app.urls[0])
    await raw.send_raw(data)
    frame = await raw.receive(ANSWER_S)
    assert frame["type"] == "error", frame
    assert frame["code"] in (code, "hello-required", "bad-frame"), frame
    assert await raw.wait_closed(ANSWER_S) == 4500


@pytest.mark.parametrize("first", [
    b'{"type":"ping","id":5}', b'{"type":"open","id":5}', b'{"type":"subscribe","id":5}', hello(protocol=2, id=5),
    hello(session="short", id=5), hello(token=5, id=5), b'{"id":5}',
], ids=range(7))
async def test_what_came_instead_of_a_hello_gets_its_number_back(app: App, first: bytes) -> None:
    """[C1] [W3]"""
    raw = await RawClient.connect(app.urls[0])
    await raw.send_raw(first)
    assert (await raw.receive(ANSWER_S))["id"] == 5
    assert await raw.wait_closed(ANSWER_S) == 4500


async def test_R36_a_hello_over_8_kib_never_reaches_memory(app: App) -> None:
    """[C2]: 8 KiB are read, one byte more is 1009; a binary one is 4500; a slow one costs what it sent."""
    raw = await RawClient.connect(app.urls[0])
    await raw.send_raw(hello(more="x" * 8000))
    assert (await raw.receive(ANSWER_S))["type"] == "welcome"
    await raw.close()
    for size in (8 * 1024 + 1, 100_000, 20 * MIB):
        raw = await RawClient.connect(app.urls[0])
        with contextlib.suppress(ConnectionClosed):
            await raw.send_raw(hello(more="x" * size))
        assert await raw.wait_closed(ANSWER_S) in (1009, 4500)
    raw = await RawClient.connect(app.urls[0])
    await raw.send_binary(hello())
    assert (await raw.receive(ANSWER_S))["code"] == "binary-frame"
    assert await raw.wait_closed(ANSWER_S) == 4500


async def test_R36_no_hello_in_time_is_4408(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """[C2]: the time is 10 s; here it is a tenth."""
    from tellback_server import tab

    assert tab.HELLO_TIMEOUT_S == 10
    monkeypatch.setattr(tab, "HELLO_TIMEOUT_S", 0.1)
    raw = await RawClient.connect(app.urls[0])
    began_s = time.monotonic()
    assert await raw.wait_closed(ANSWER_S) == 4408
    assert time.monotonic() - began_s >= 0.09
    # Whoever said hello stays.
    tab_client = await TabClient.join(app.urls[0])
    await tab_client.raw.expect_silence(0.15)
    assert (await tab_client.ask("ping"))["type"] == "pong"


DEEP = b'{"a":' * 70 + b"1" + b"}" * 70


def append(messages: bytes, rest: bytes = b'"op":1,"base":"*"') -> bytes:
    return b'{"type":"append","id":5,"chat":"%b",%b,"messages":%b}' % (CHAT.encode(), rest, messages)


NUMBERED = re.compile(rb'.*"id": ?5[,}]', re.DOTALL).match
"""Whether a frame names its request."""


def about(type_: str, **fields: Any) -> bytes:
    return json.dumps({"type": type_, "id": 5, **fields}).encode()


FRAMES: dict[str, tuple[bytes, str | tuple[str, ...]]] = {
    # What is no frame: rule [W1].
    "empty": (b"", "bad-json"),
    "blank": (b" " * 1000, "bad-json"),
    "scalar": (b"5", "bad-json"),
    "string": (b'"ping"', "bad-json"),
    "array": (b'[{"type":"ping"}]', "bad-json"),
    "cut off": (b'{"type":"ping"', "bad-json"),
    "rest behind": (b'{"type":"ping"} x', "bad-json"),
    "byte order mark": (b'\xef\xbb\xbf{"type":"ping"}', "bad-json"),
    "single quotes": (b"{'type':'ping'}", "bad-json"),
    "trailing comma": (b'{"type":"ping",}', "bad-json"),
    "comment": (b'{"type":"ping"/**/}', "bad-json"),
    "control character": (b'{"type":"ping","x":"\x01"}', "bad-json"),
    "nul": (b'{"type":"ping"}\x00', "bad-json"),
    # Fields of every frame: rules [W2] and [W5].
    "no type": (b'{"id":5}', "bad-frame"),
    "type is a number": (b'{"type":5,"id":5}', ("bad-frame", "unknown-type")),
    "unknown type": (b'{"type":"explode","id":5}', "unknown-type"),
    "type in capitals": (b'{"type":"PING","id":5}', "unknown-type"),
    "id is a float": (b'{"type":"ping","id":5.0}', "bad-frame"),
    "id is a bool": (b'{"type":"ping","id":true}', "bad-frame"),
    "id is negative": (b'{"type":"ping","id":-1}', "bad-frame"),
    "id is beyond 2^53": (b'{"type":"ping","id":9007199254740993}', ("bad-frame", "number-range")),
    "id is a string": (b'{"type":"ping","id":"5"}', "bad-frame"),
    # Payloads: rule [W4].
    "nan": (append(b'[{"mes":NaN}]'), "bad-json"),
    "infinity": (append(b'[{"mes":-Infinity}]'), "bad-json"),
    "beyond 64 bits": (append(b'[{"mes":18446744073709551616}]'), "number-range"),
    "400 digits": (append(b'[{"mes":' + b"9" * 400 + b"}]"), "number-range"),
    "beyond a double": (append(b'[{"mes":1e400}]'), "number-range"),
    "half a surrogate pair": (append(b'[{"mes":"\\ud800"}]'), "bad-json"),
    "half a pair as a key": (append(b'[{"\\udc00":1}]'), "bad-json"),
    "too deep": (append(b"[" + DEEP + b"]"), "too-deep"),
    "a million levels": (append(b"[" * 1_000_000 + b"]" * 1_000_000), ("too-deep", "bad-json")),
    # hello, auth
    "hello again": (hello(id=5), "hello-repeated"),
    # open, close
    "open without since": (about("open", chat=CHAT), "bad-frame"),
    "open with since of a string": (about("open", chat=CHAT, since="x"), "bad-frame"),
    "open with half a version": (about("open", chat=CHAT, since={"epoch": 1, "seq": 1}), "bad-frame"),
    "open nothing": (about("open", since=None), "bad-frame"),
    "open what has no name": (about("open", chat="", since=None), "bad-frame"),
    "open a number": (about("open", chat=5, since=None), "bad-frame"),
    "open what is not there": (about("open", chat="group:nobody", since=None), "not-found"),
    "open an id that nobody has": (about("open", chat=f"id:{KNOWN}", since=None), "not-found"),
    "open and create with since": (
        about("open", chat="group:new", create=True, since={"epoch": 1, "seq": 1, "integrity": KNOWN}),
        "create-with-since"),
    "open with a negative tail": (about("open", chat=CHAT, since=None, tail=-1), "bad-frame"),
    "close what is not there": (about("close", chat="group:nobody"), ("not-found", "not-open")),
    # Names: rules [N1], [N2] and [N6].
    **{f"create {name!r}"[:60]: (about("open", chat=name, create=True, since=None), "name-illegal") for name in (
        "x", "character:", "character:A", "character:A/", "character:/B", "group:", "group:..", "group:.",
        "character:../x", "character:A/../../x", "character:A/b/c", "character:..\\x/y", "group:a/b",
        "group:/etc/passwd", "group:a\x00b", "group:a\nb", "group:CON", "group:nul.jsonl", "group:x.jsonl",
        "group:a:b", "group:a*",
        "group:a?", 'group:"', "group:<x>", "group:|", "group: x", "group:x ", "group:x.", "group:.x",
        "group:x.luker-state.y", "group:x.state.y", "group:" + "n" * 300, "group:a\u202eb", "group:a\u2028b",
        "group:e\u0301", "id:", "id:x", f"id:{KNOWN.upper()}X", "user:x", "GROUP:x", "CHARACTER:a/b",
    )},
    # Writes: rules [B1], [B2], [B3], [O1], [O6], [P2], [A1], [A2] and [A4].
    "append nothing at all": (about("append", chat=CHAT), "bad-frame"),
    "append a string": (append(b'["x"]'), ("bad-frame", "message-illegal")),
    "append no list": (append(b"{}"), "bad-frame"),
    "append none": (append(b"[]"), ("bad-frame", "message-illegal")),
    "append without a base": (append(b"[{}]", b'"op":1'), "base-required"),
    "append with base null": (append(b"[{}]", b'"op":1,"base":null'), "base-illegal"),
    "append with a foreign base": (append(b"[{}]", b'"op":1,"base":"x"'), "base-illegal"),
    "append on an op to come": (append(b"[{}]", b'"op":1,"base":{"op":9}'), "base-illegal"),
    "append without op": (append(b"[{}]", b'"base":"*"'), "op-required"),
    "append as op 0": (append(b"[{}]", b'"op":0,"base":"*"'), "bad-frame"),
    "append as op 1.0": (append(b"[{}]", b'"op":1.0,"base":"*"'), "bad-frame"),
    "append as op true": (append(b"[{}]", b'"op":true,"base":"*"'), "bad-frame"),
    "append as op 9": (append(b"[{}]", b'"op":9,"base":"*"'), "op-gap"),
    "an id of a number": (append(b'[{"id":5}]'), "message-illegal"),
    "an empty id": (append(b'[{"id":""}]'), "message-illegal"),
    "an id with a line end": (append(b'[{"id":"a\\nb"}]'), "message-illegal"),
    "a long id": (append(b'[{"id":"' + b"i" * 129 + b'"}]'), "message-illegal"),
    "one id twice": (append(b'[{"id":"a"},{"id":"a"}]'), "message-id-taken"),
    "patch nobody": (
        about("patch", chat=CHAT, op=1, base=KNOWN, message="no", patch=[]), ("message-unknown", "conflict")),
    "patch with a string": (about("patch", chat=CHAT, op=1, base="*", message="no", patch="x"), "patch-illegal"),
    "patch an operation of nonsense": (
        about("patch", chat=CHAT, op=1, base="*", message="no", patch=[{"op": "explode", "path": ""}]),
        ("message-unknown", "patch-illegal", "bad-frame")),
    "too many operations": (
        about("patch", chat=CHAT, op=1, base="*", message="no", patch=[{"op": "test", "path": "", "value": 1}] * 10001),
        ("patch-too-large", "too-large")),
    "delete a number": (about("delete", chat=CHAT, op=1, base="*", messages=[5]), "bad-frame"),
    "delete on a star": (about("delete", chat=CHAT, op=1, base="*", messages=["a"]), "base-illegal"),
    "metadata of a list": (about("metadata-update", chat=CHAT, op=1, base="*", set=[]), ("bad-frame", "base-illegal")),
    "metadata with set and merge": (
        about("metadata-update", chat=CHAT, op=1, base="*", set={}, merge={}), ("bad-frame", "base-illegal")),
    "an empty batch": (about("batch", chat=CHAT, op=1, base="*", requests=[]), "bad-frame"),
    "a batch in a batch": (
        about("batch", chat=CHAT, op=1, base="*", requests=[{"type": "batch", "requests": []}]), "bad-frame"),
    "on_conflict of nonsense": (
        about("append", chat=CHAT, op=1, base="*", messages=[{}], on_conflict="merge"), "bad-frame"),
    "force is a word": (about("append", chat=CHAT, op=1, base="*", messages=[{}], force="yes"), "bad-frame"),
    # States: rules [N3] and [N4].
    "state of a character that is not there": (about("state-get", owner={"character": "Alice"}), "not-found"),
    "state of a character in another folder": (about("state-get", owner={"character": "../x"}), "name-illegal"),
    "state of a preset in no folder": (about("state-get", owner={"preset": "Default"}), "name-illegal"),
    "state of a preset outside": (about("state-get", owner={"preset": "../../etc/x"}), "name-illegal"),
    "open a character and a chat": (about("open", chat=CHAT, owner={"character": "Pip"}, since=None), "bad-frame"),
    "open nobody": (about("open", owner={}, since=None), "bad-frame"),
    "namespace with a path": (
        about("state-update", owner={"chat": CHAT}, op=1, namespace="../x", base=None, set=1), "namespace-illegal"),
    "namespace in capitals": (
        about("state-update", owner={"chat": CHAT}, op=1, namespace="Memory", base=None, set=1), "namespace-illegal"),
    "namespace of ours": (
        about("state-update", owner={"chat": CHAT}, op=1, namespace="chat_sync", base=None, set=1),
        "namespace-reserved"),
    "floor log": (
        about("state-update", owner={"chat": CHAT}, op=1, namespace="x__floor_log", base=None, set=1),
        "namespace-reserved"),
    "a state of null": (
        about("state-update", owner={"chat": CHAT}, op=1, namespace="x", base=None, set=None), ("bad-frame",)),
    "state with nothing": (
        about("state-update", owner={"chat": CHAT}, op=1, namespace="x", base=None), "bad-frame"),
    "get a namespace with a path": (
        about("state-get", owner={"chat": CHAT}, namespaces=["../../etc"]), "namespace-illegal"),
    # history
    "history of nobody": (about("history", chat="group:nobody"), "not-found"),
    "history of 0": (about("history", chat=CHAT, limit=0), "bad-frame"),
    "history of 1001": (about("history", chat=CHAT, limit=1001), "bad-frame"),
    "history of the future": (about("history", chat=CHAT, at=10**9), "version-unknown"),
    # R37: what only a server says, and what only a server knows. [W2]
    **{f"R37 {name}": (about(name, chat=CHAT, op=1), "unknown-type") for name in (
        "welcome", "opened", "snapshot-part", "ack", "integrity", "conflict", "error", "state", "reset", "behind",
        "goaway", "pong", "closed", "generation-started", "generation-stored", "presence",
    )},
}


@pytest.mark.parametrize("name", FRAMES)
async def test_a_bad_frame_is_a_typed_error_and_the_connection_stays(app: App, name: str) -> None:
    """[C3] [W3] [W8] R37: a code of the table within a second, no internals, and the next frame is served."""
    data, wanted = FRAMES[name]
    codes = (wanted,) if isinstance(wanted, str) else wanted
    tab = await TabClient.join(app.urls[0])
    await tab.open(CHAT)
    await tab.raw.send_raw(data)
    answer = await tab.raw.receive(ANSWER_S)
    assert answer.get("code", answer["type"]) in codes, answer
    if answer["type"] == "error":
        assert answer["retry"] in ("never", "backoff", "after-sync", "after-auth", "now")
        assert answer["message"].endswith(".")
        assert not any(word in json.dumps(answer) for word in ("Traceback", "/tmp", ".py", "msgspec", "orjson"))
        if NUMBERED(data[:100]) and "id is" not in name and answer["code"] != "bad-json" and len(data) < MIB:
            assert answer["id"] == 5
    assert (await tab.ask("ping"))["type"] == "pong"
    await tab.raw.expect_silence(0.01)


async def test_R37_a_client_cannot_speak_for_another(app: App) -> None:
    """[W2] [D3]: `by`, `session`, `version` and `user` in a frame are unknown fields; the server says who it was."""
    victim = await TabClient.join(app.urls[0])
    await victim.open(CHAT)
    forger = await TabClient.join(app.urls[0])
    forged = {
        "by": {"session": victim.session, "op": 1}, "session": victim.session, "user": "root",
        "version": {"epoch": 9, "seq": 99, "integrity": KNOWN}, "previous": KNOWN, "durable": "fsync",
    }
    ack = await forger.write("append", CHAT, base="*", messages=[{"mes": "who said that?"}], **forged)
    assert ack["type"] == "ack"
    told = await victim.raw.receive_until(type="integrity")
    assert told["by"] == {"session": forger.session, "op": 1}
    assert told["version"] == ack["version"]
    assert ack["version"]["epoch"] == 1
    assert (await victim.append(CHAT, "me"))["op"] == 1, "its numbers were not used up"


async def test_R23_a_frame_over_the_limit_is_an_error_and_over_twice_the_limit_1009(app: App) -> None:
    """[W7]: no reconnect loop: the connection stays, the op number is free, and a smaller op goes through."""
    tab = await TabClient.join(app.urls[0])
    opened = await tab.open(CHAT)
    assert opened["count"] == 0
    for size in (4 * MIB, 6 * MIB):
        answer = await tab.append(CHAT, "x" * size)
        assert (answer["type"], answer["code"], answer["retry"], answer["op"]) == ("error", "too-large", "never", 1)
        assert answer["id"] == tab.requests
        tab.ops[CHAT] = 0  # It uses up no number.
    fits = await tab.append(CHAT, "y" * (4 * MIB - 1000))
    assert (fits["type"], fits["op"]) == ("ack", 1)
    raw = await RawClient.connect(app.urls[0])
    await raw.send_raw(hello())
    await raw.receive()
    with contextlib.suppress(ConnectionClosed):
        await raw.send_raw(append(b'[{"mes":"' + b"z" * (9 * MIB) + b'"}]'))
    assert await raw.wait_closed(5) == 1009
    assert (await tab.open(CHAT))["count"] == 1, "nothing was overwritten or half stored"


async def test_R23_documents_over_their_limit_are_refused_whole(tmp_path: Path) -> None:
    """[W7] [P1]: a document may grow to its limit in small steps, not past it."""
    async with running(tmp_path, frame_bytes_max=64 << 10, document_bytes_max=100 << 10) as app:
        tab = await TabClient.join(app.urls[0])
        assert tab.raw is not None
        await tab.open(CHAT, create=True)
        base: Any = None
        codes = []
        for number in range(4):
            answer = await tab.write_state(
                "state-update", CHAT, namespace="big", base=base, merge={f"part {number}": "x" * 40_000})
            codes.append(answer.get("code", answer["type"]))
            if answer["type"] == "ack":
                base = answer["version"]["integrity"]
            else:
                tab.ops[CHAT] -= 1
        assert codes[:2] == ["ack", "ack"]
        assert set(codes[2:]) <= {"too-large", "patch-too-large"}, codes
        states = await tab.ask("state-get", owner={"chat": CHAT}, namespaces=["big"])
        assert sorted(states["states"]["big"]["data"]) == ["part 0", "part 1"]


async def test_over_a_hundred_bad_frames_in_a_minute_end_with_4429(app: App) -> None:
    """[C4] [C8]: the hundredth is answered, the one after it is the last."""
    raw = await RawClient.connect(app.urls[0])
    await raw.send_raw(hello())
    await raw.receive()
    for _ in range(101):
        await raw.send_raw(b"no json")
    answers = [await raw.receive(ANSWER_S) for _ in range(101)]
    assert {answer["code"] for answer in answers} == {"bad-json"}
    assert await raw.wait_closed(ANSWER_S) == 4429
    back = await TabClient.join(app.urls[0])
    assert (await back.open(CHAT))["type"] == "opened"


async def test_R46_a_second_live_hello_takes_the_session_over_with_4501(app: App) -> None:
    """[C6] [C8]: what the first had sent is answered to whoever asks again, and only one is told of commits."""
    session = new_session()
    first = await TabClient.join(app.urls[0], session)
    await first.open(CHAT)
    await first.raw.send({"type": "append", "chat": CHAT, "op": 1, "base": "*", "messages": [{"mes": "mine"}]})
    second = await TabClient.join(app.urls[0], session)
    assert await first.raw.wait_closed(ANSWER_S) == 4501
    assert (await first.raw.receive_until(type="error"))["code"] == "session-taken-over"
    opened = await second.open(CHAT)
    assert opened["next_op"] in (1, 2)
    again = await second.ask("append", chat=CHAT, op=1, base="*", messages=[{"mes": "mine"}])
    assert again["type"] == "ack"
    assert (await second.open(CHAT))["count"] == 1
    other = await TabClient.join(app.urls[0])
    await other.open(CHAT)
    await other.append(CHAT, "news")
    assert (await second.raw.receive_until(type="integrity"))["by"]["session"] == other.session
    await second.raw.expect_silence(0.02)
    # The one that went does not take the place of the one that stays when it closes.
    third = await TabClient.join(app.urls[0], session)
    assert await second.raw.wait_closed(ANSWER_S) == 4501
    assert (await third.ask("ping"))["type"] == "pong"


async def test_a_binary_message_is_an_error_and_the_connection_stays(app: App) -> None:
    """[W1]"""
    tab = await TabClient.join(app.urls[0])
    await tab.raw.send_binary(b'{"type":"ping","id":5}')
    assert (await tab.raw.receive(ANSWER_S))["code"] == "binary-frame"
    assert (await tab.ask("ping"))["type"] == "pong"


async def test_ten_thousand_ops_in_flight_are_back_pressure_and_not_memory(tmp_path: Path) -> None:
    """[C5]: past 64 the server stops reading this connection; another one is served meanwhile; all are answered."""
    async with running(tmp_path) as app:
        other = await TabClient.join(app.urls[0])
        await other.open("group:Friends", create=True)
        busy = await TabClient.join(app.urls[0])
        await busy.open(CHAT, create=True)
        [tab] = [tab for tab in app._reception.tabs if tab.session_id == busy.session]
        most = done = 0

        async def pour() -> None:
            for op in range(1, 10_001):
                await busy.raw.send(
                    {"type": "append", "id": op, "chat": CHAT, "op": op, "base": "*", "messages": [{"mes": "x"}]}
                )

        async def drink() -> None:
            nonlocal most, done
            for op in range(1, 10_001):
                answer = await busy.raw.receive()
                assert (answer["type"], answer["op"]) == ("ack", op)
                done = op
                most = max(most, tab.session.in_flight)

        async def others() -> None:
            for _ in range(20):
                before = done
                assert (await other.append("group:Friends", "hi"))["type"] == "ack"
                assert done - before < 2_000, "it waited for what the other one sent"

        await asyncio.gather(pour(), drink(), others())
        assert most <= 64


async def test_a_thousand_connections_that_come_and_go_leave_nothing_behind(app: App) -> None:
    """[C4]: subscriptions, sessions and timers of tabs that went are gone."""
    for _ in range(20):
        raws = [await RawClient.connect(app.urls[0]) for _ in range(10)]
        for number, raw in enumerate(raws):
            if number % 3:
                await raw.send_raw(hello())
            if number % 3 == 2:
                await raw.send({"type": "open", "chat": CHAT, "since": None})
        for raw in raws:
            raw.abort()
    await until(lambda: len(app._reception.tabs) <= len(joined))
    assert len(app._reception._sessions) == len(joined)
    [actor] = app._hub.actors
    await until(lambda: len(actor.audience.subscriptions) <= 1)
