"""One op, one outcome: resent over reconnects and kill -9, refused, cut off in the middle, or reused by mistake."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked_server import ForkedServer
from tests.support.oracle import LOST, whole_history
from tests.support.raw_client import RawClient
from tests.support.server import Process, TabClient, new_session, running, texts
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"
OWNER = {"chat": CHAT}


def append(op: int, text: str, base: Any = "*") -> dict[str, Any]:
    return {"type": "append", "chat": CHAT, "op": op, "base": base, "messages": [{"name": "U", "mes": text}]}


def without(frame: dict[str, Any], *fields: str) -> dict[str, Any]:
    return {key: value for key, value in frame.items() if key not in fields}


async def said(url: str) -> list[str]:
    """What a newcomer reads."""
    tab = await TabClient.join(url)
    opened = await tab.open(CHAT)
    await tab.close()
    return texts(opened["messages"])


async def test_R15_ok_ok_is_two_messages(tmp_path: Path) -> None:
    """[M7]: equal messages in one append, in two ops, and from two tabs all stay."""
    async with running(tmp_path) as app:
        one = await TabClient.join(app.urls[0])
        await one.open(CHAT, create=True)
        other = await TabClient.join(app.urls[0])
        await other.open(CHAT)
        acks = [await one.append(CHAT, "ok", "ok"), await one.append(CHAT, "ok"), await other.append(CHAT, "ok")]
        assert [ack["type"] for ack in acks] == ["ack"] * 3
        ids = [message_id for ack in acks for message_id in ack["messages"]]
        assert len(set(ids)) == 4
        assert await said(app.urls[0]) == ["ok"] * 4
    assert (tmp_path / "default-user/chats/Alice/First meeting.jsonl").read_bytes().count(b'"mes":"ok"') == 4


async def test_R16_the_same_op_number_with_another_body_is_a_loud_error(tmp_path: Path) -> None:
    """[O3] [O5] [O6]: and the number keeps its outcome."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        first = await tab.ask(**append(1, "one"))
        other = await tab.ask(**append(1, "something else"))
        assert (other["type"], other["code"], other["retry"], other["op"]) == ("error", "op-mismatch", "never", 1)
        again = await tab.ask(**append(1, "one"))
        assert without(again, "id", "duplicate") == without(first, "id")
        assert again["duplicate"] is True
        # A chat_id for the owner is another spelling, not another body.
        opened = await tab.ask("open", chat=CHAT, since=None)
        by_id = await tab.ask(**{**append(1, "one"), "chat": f"id:{opened['chat_id']}"})
        assert (by_id["type"], by_id["duplicate"]) == ("ack", True)
        gap = await tab.ask(**append(7, "too early"))
        assert (gap["code"], gap["expected"], gap["retry"]) == ("op-gap", 2, "after-sync")
        assert (await tab.ask(**append(2, "two")))["type"] == "ack"
        assert await said(app.urls[0]) == ["one", "two"]


async def test_R17_a_lost_ack_and_a_resend_over_a_new_connection_and_over_kill_9(tmp_path: Path) -> None:
    """[O2] [O8] [R4]: the answer is the same, byte for byte but for `id` and `duplicate`."""
    async with ForkedServer(tmp_path / "data", checkpoint_interval_s=60) as server:
        session = new_session()
        tab = await TabClient.join(server.url, session)
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "zero")
        watcher = await TabClient.join(server.url)
        await watcher.open(CHAT)
        # The op arrives, the ack is lost: the socket is cut as soon as another tab has heard of the commit.
        await tab.raw.send({**append(2, "one"), "id": 9})
        told = await watcher.raw.receive_until(type="integrity")
        tab.raw.abort()
        answers = []
        for kills in range(3):
            if kills:
                await server.kill()
                await server.start()
            back = await TabClient.join(server.url, session)
            assert (await back.open(CHAT))["next_op"] == 3
            answers.append(await back.ask(**append(2, "one")))
            back.raw.abort()
        for answer in answers:
            assert (answer["type"], answer["duplicate"]) == ("ack", True)
            assert answer["version"] == told["version"]
            assert without(answer, "id") == without(answers[0], "id")
        assert await said(server.url) == ["zero", "one"]
        watcher.raw.abort()


@pytest.mark.parametrize("restart", [False, True], ids=["reconnect", "kill"])
async def test_R17_every_kind_of_outcome_comes_back_as_it_was(tmp_path: Path, restart: bool) -> None:
    """[O2] [O4] [O8]: ack, conflict and refusal of every kind of write."""
    async with ForkedServer(tmp_path / "data", checkpoint_interval_s=60) as server:
        session = new_session()
        tab = await TabClient.join(server.url, session)
        opened = await tab.open(CHAT, create=True)
        stale = opened["version"]["integrity"]
        ack = await tab.ask(**append(1, "one"))
        message = ack["messages"][0]
        now = ack["version"]["integrity"]
        writes: list[dict[str, Any]] = [
            append(1, "one"),
            {"type": "patch", "chat": CHAT, "op": 2, "base": now, "message": message,
             "patch": [{"op": "replace", "path": "/mes", "value": "patched"}]},
            {"type": "patch", "chat": CHAT, "op": 3, "base": stale, "message": message, "patch": []},
            {"type": "patch", "chat": CHAT, "op": 4, "base": {"op": 2}, "message": "nobody", "patch": []},
            {"type": "append", "chat": CHAT, "op": 5, "messages": [{"mes": "no base"}]},
            {"type": "metadata-update", "chat": CHAT, "op": 6, "base": {"op": 2}, "set": {"note": 1}},
            {"type": "state-update", "owner": OWNER, "op": 7, "namespace": "memory", "base": None, "set": {"a": 1}},
            {"type": "state-update", "owner": OWNER, "op": 8, "namespace": "memory", "base": None, "set": {"a": 2}},
            {"type": "batch", "chat": CHAT, "op": 9, "base": "*", "requests": [
                {"type": "append", "messages": [{"mes": "in a batch"}]},
                {"type": "state-update", "namespace": "memory", "merge": {"b": 2}}]},
            {"type": "delete", "chat": CHAT, "op": 10, "base": {"op": 4}, "messages": [message]},
            {"type": "state-delete", "owner": OWNER, "op": 11, "namespace": "memory", "base": {"op": 9}},
            {"type": "append", "chat": CHAT, "op": 12, "base": 5, "messages": []},
        ]
        first = [await tab.ask(**write) for write in writes]
        kinds = [answer["type"] for answer in first]
        assert kinds == ["ack", "ack", "conflict", "error", "error", "ack", "ack", "conflict", "ack", "error", "ack",
                         "error"]
        assert [answer["code"] for answer in first if answer["type"] == "error"] == [
            "message-unknown", "base-required", "parent-refused", "bad-frame"]
        tab.raw.abort()
        if restart:
            await server.kill()
            await server.start()
        back = await TabClient.join(server.url, session)
        assert (await back.open(CHAT))["next_op"] == 13
        head = (await back.open(CHAT))["head"]
        for write, before in zip(writes, first, strict=True):
            again = await back.ask(**write)
            volatile = ("id", "duplicate", "missed", "resync")
            assert again["duplicate"] is True, again
            assert without(again, *volatile) == without(before, *volatile)
        assert (await back.open(CHAT))["head"] == head, "nothing happened"
        assert await said(server.url) == ["patched", "in a batch"]


async def test_R18_a_refused_op_blocks_neither_later_ops_nor_what_comes_from_others(tmp_path: Path) -> None:
    """[O4] [B7]: it uses up its number, and only what stands on it is refused too."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open(CHAT, create=True)
        other = await TabClient.join(app.urls[0])
        await other.open(CHAT)
        frames = [
            append(1, "one"),
            {"type": "delete", "chat": CHAT, "op": 2, "base": {"op": 1}, "messages": ["nobody"]},
            append(3, "stands on the refused one", base={"op": 2}),
            append(4, "stands on a conflict", base=opened["version"]["integrity"]),
            append(5, "two"),
        ]
        for number, frame in enumerate(frames):
            await tab.raw.send({**frame, "id": 100 + number})
        answers = [await tab.raw.receive_until(id=100 + number) for number in range(5)]
        assert [answer["type"] for answer in answers] == ["ack", "error", "error", "conflict", "ack"]
        assert [answer.get("code") for answer in answers[1:3]] == ["message-unknown", "parent-refused"]
        told = [await other.raw.receive_until(type="integrity") for _ in range(2)]
        assert [frame["by"]["op"] for frame in told] == [1, 5]
        await other.append(CHAT, "three")
        assert (await tab.raw.receive_until(type="integrity"))["by"]["session"] == other.session
        assert await said(app.urls[0]) == ["one", "two", "three"]


async def test_R19_killed_at_every_step_of_the_log_the_op_and_its_number_stand_or_fall_together(
    tmp_path: Path,
) -> None:
    """[D1] [O2] [E2]: effects and outcome are one record, whatever of it reached the disk."""
    moments = ["log.before_write=kill", "log.write=torn:40", "log.after_write=kill", "log.after_sync=kill",
               "log.before_tell=kill"]
    present = await asyncio.gather(*(
        killed_at(tmp_path / str(number) / "data", f"{moment}@8") for number, moment in enumerate(moments)
    ))
    assert present == [False, False, True, True, True], "kill -9 keeps what was written, synced or not"


async def killed_at(data: Path, strike: str) -> bool:
    """Append until the failpoint strikes; resend after the restart. Whether the last op was there before that."""
    data.parent.mkdir()
    process = await Process(data, environment={"TELLBACK_FAILPOINTS": strike}).start()
    session = new_session()
    acked: dict[int, dict[str, Any]] = {}
    sent = 0
    tab = await TabClient.join(process.url, session)
    with contextlib.suppress(*LOST):
        await tab.open(CHAT, create=True)
        for op in range(1, 30):
            sent = op
            acked[op] = await tab.ask(**append(op, f"text {op}"))
    assert await process.ended() == -9, strike
    assert sent > 1, strike
    tab.raw.abort()
    process.environment = {}
    # Not `async with`: its end closes the tabs of every server, and the others still run.
    await process.start()
    try:
        back = await TabClient.join(process.url, session)
        opened = await back.open(CHAT)
        assert opened["next_op"] in (sent, sent + 1), strike
        present = bool(opened["next_op"] == sent + 1)
        assert texts(opened["messages"]) == [f"text {op}" for op in range(1, sent + present)]
        again = await back.ask(**append(sent, f"text {sent}"))
        assert again["type"] == "ack"
        assert again.get("duplicate", False) is present
        for op, ack in acked.items():
            assert (await back.ask(**append(op, f"text {op}")))["version"] == ack["version"]
        assert texts((await back.open(CHAT))["messages"]) == [f"text {op}" for op in range(1, sent + 1)]
        await back.close()
        assert await process.stop() == 0
    finally:
        await process.kill()
    return present


async def test_R20_a_client_that_vanishes_cancels_nothing_that_was_read(tmp_path: Path) -> None:
    """[D1]: what had arrived whole is carried out, and the commits of others in the same batch are unharmed."""
    async with running(tmp_path) as app:
        other = await TabClient.join(app.urls[0])
        await other.open(CHAT, create=True)
        for turn in range(20):
            session = new_session()
            tab = await TabClient.join(app.urls[0], session)
            await tab.open(CHAT)
            mine = asyncio.create_task(other.append(CHAT, f"other {turn}"))
            for op in range(1, 9):
                await tab.raw.send(append(op, f"{turn}/{op}"))
            tab.raw.abort()
            assert (await mine)["type"] == "ack"
            back = await TabClient.join(app.urls[0], session)
            next_op = (await back.open(CHAT))["next_op"]
            for op in range(1, 9):
                answer = await back.ask(**append(op, f"{turn}/{op}"))
                assert answer["type"] == "ack"
                assert answer.get("duplicate", False) is (op < next_op)
            await back.close()
        everything = await said(app.urls[0])
        for turn in range(20):
            mine_said = [text for text in everything if text.startswith(f"{turn}/")]
            assert mine_said == [f"{turn}/{op}" for op in range(1, 9)]
            assert everything.count(f"other {turn}") == 1


async def test_R39_acks_and_echoes_are_told_apart_and_none_is_left_over(tmp_path: Path) -> None:
    """[D3]: the sender gets its ack and never its own commit; two tabs that write at once both end up even."""
    async with running(tmp_path) as app:
        tabs = [await TabClient.join(app.urls[0]) for _ in range(2)]
        await tabs[0].open(CHAT, create=True)
        await tabs[1].open(CHAT)
        for op in range(1, 21):
            for tab in tabs:
                await tab.raw.send({**append(op, f"{op}"), "id": 1000 + op})
        for tab in tabs:
            seen = [await tab.raw.receive() for _ in range(40)]
            acks = [frame for frame in seen if frame["type"] == "ack"]
            told = [frame for frame in seen if frame["type"] == "integrity"]
            assert [frame["id"] for frame in acks] == [1000 + op for op in range(1, 21)]
            assert {frame["by"]["session"] for frame in told} == {tabs[0].session, tabs[1].session} - {tab.session}
            # [D2]: both in one order, that of the commits.
            assert [frame["version"]["seq"] for frame in seen] == list(range(2, 42))
            await tab.raw.expect_silence()


async def test_R45_the_socket_dies_between_send_and_answer_many_times_over(tmp_path: Path) -> None:
    """[O2]: ten ops, each of them sent over a connection that is cut at once, arrive once each and in order."""
    async with running(tmp_path) as app:
        session = new_session()
        tab = await TabClient.join(app.urls[0], session)
        await tab.open(CHAT, create=True)
        await tab.close()
        op = 1
        cuts = 0
        while op <= 10:
            tab = await TabClient.join(app.urls[0], session)
            opened = await tab.open(CHAT)
            assert opened["next_op"] in (op, op + 1)
            op = opened["next_op"]
            if op > 10:
                break
            await tab.raw.send(append(op, f"{op}"))
            tab.raw.abort()
            cuts += 1
        assert cuts >= 10
        assert await said(app.urls[0]) == [f"{number}" for number in range(1, 11)]


async def test_outcomes_older_than_256_are_forgotten_and_never_carried_out_again(tmp_path: Path) -> None:
    """[O7]: an op that nobody remembers is an error, not a second message."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        for op in range(1, 259):
            await tab.raw.send({**append(op, f"{op}"), "id": op})
        assert (await tab.raw.receive_until(id=258))["type"] == "ack"
        tab.requests = 1000
        forgotten = await tab.ask(**append(2, "2"))
        assert (forgotten["type"], forgotten["code"]) == ("error", "op-forgotten")
        kept = await tab.ask(**append(3, "3"))
        assert (kept["type"], kept["duplicate"]) == ("ack", True)
        assert len(await whole_history(tab, CHAT)) == 259


async def test_numbers_belong_to_a_session_and_an_owner(tmp_path: Path) -> None:
    """[O1]: another chat, another session and another user count from 1; a write without a number is refused."""
    other_chat = "group:Friends"
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.open(other_chat, create=True)
        assert (await tab.ask(**append(1, "here")))["type"] == "ack"
        assert (await tab.ask(**{**append(1, "there"), "chat": other_chat}))["type"] == "ack"
        state = {"type": "state-update", "owner": OWNER, "namespace": "n", "base": None, "set": 1}
        assert (await tab.ask(**state, op=1))["code"] == "op-mismatch", "states share the chat's numbers"
        assert (await tab.ask(**state, op=2))["type"] == "ack"
        unnumbered = await tab.ask("append", chat=CHAT, base="*", messages=[{"mes": "x"}])
        assert (unnumbered["code"], unnumbered["retry"]) == ("op-required", "never")
        stranger = await TabClient.join(app.urls[0])
        assert (await stranger.open(CHAT))["next_op"] == 1


async def test_R17_the_first_op_after_hello_needs_no_open(tmp_path: Path) -> None:
    """[O2]: writes go to a chat that is not open on this connection, and the ack is all that comes."""
    async with running(tmp_path) as app:
        maker = await TabClient.join(app.urls[0])
        await maker.open(CHAT, create=True)
        await maker.close()
        raw = await RawClient.connect(app.urls[0])
        await raw.send({"type": "hello", "protocol": 1, "session": new_session(), "token": None})
        await raw.receive()
        await raw.send({**append(1, "blind"), "id": 1})
        assert (await raw.receive())["type"] == "ack"
        await raw.expect_silence()
        await raw.close()


async def test_R19_outcomes_survive_a_clean_stop_and_the_idle_end_of_a_chat(tmp_path: Path) -> None:
    """[O8] [K4]: whether they come from the log, from the session file or from memory."""
    data = tmp_path / "data"
    session = new_session()
    async with ForkedServer(data, checkpoint_interval_s=0.02, idle_s=0.05) as server:
        tab = await TabClient.join(server.url, session)
        await tab.open(CHAT, create=True)
        ack = await tab.ask(**append(1, "one"))
        await tab.close()
        sessions = data / ".tellback" / "sessions"
        await until(lambda: any(path.is_file() for path in sessions.rglob("*")))
        for _ in range(2):
            back = await TabClient.join(server.url, session)
            await back.open(CHAT)
            again = await back.ask(**append(1, "one"))
            assert (again["version"], again["duplicate"]) == (ack["version"], True)
            await back.close()
            assert await server.stop() == 0
            await server.start()
    lines = (data / "default-user/chats/Alice/First meeting.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line)["mes"] for line in lines[1:] if line] == ["one"]


async def test_O3_the_frame_may_be_spelled_anew_and_a_payload_may_not(tmp_path: Path) -> None:
    """[O3]: fields in another order and with white space are the same op; a message's own bytes are its body."""
    frame = '{"type":"append","id":%d,"chat":"%s","op":1,"base":"*","messages":[{"mes":"x","extra":{}}]}'
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        chat_id = (await tab.open("character:Alice/Spelling", create=True))["chat_id"]
        await tab.raw.send_raw((frame % (10, "character:Alice/Spelling")).encode())
        stored = await tab.raw.receive_until(id=10)
        again = ('{ "op" : 1, "messages":[ {"mes":"x","extra":{}} ], "base":"*",\n"chat":"id:%s",'
                 ' "id": 11, "type":"append" }')
        again %= chat_id
        await tab.raw.send_raw(again.encode())
        same = await tab.raw.receive_until(id=11)
        assert (same["version"], same["duplicate"]) == (stored["version"], True)
        for other in ('{"mes": "x","extra":{}}', '{"extra":{},"mes":"x"}'):
            spelled = (frame % (12, "character:Alice/Spelling")).replace('{"mes":"x","extra":{}}', other)
            await tab.raw.send_raw(spelled.encode())
            refused = await tab.raw.receive_until(id=12)
            assert (refused["type"], refused["code"]) == ("error", "op-mismatch")
