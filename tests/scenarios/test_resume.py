"""Coming back: what a tab gets that was away, and that it gets it once."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tellback_server import keeper
from tests.support.forked_server import ForkedServer
from tests.support.oracle import Replica, effects_of
from tests.support.raw_client import RawClient
from tests.support.server import TabClient, new_session, running, sillytavern_copy, texts, tree
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"
OTHER = "group:Friends"
FILE = "default-user/chats/Alice/First meeting.jsonl"


async def caught_up(tab: TabClient, replica: Replica, chat: str = CHAT) -> int:
    """Open with what the replica knows and follow; how many commits came. Fails on a gap or a repetition."""
    opened = await tab.open(chat, since=replica.head)
    assert opened["mode"] in ("replay", "current"), opened
    count = 0
    while replica.head != opened["head"]:
        assert replica.follow(await tab.raw.receive_until(type="integrity"))
        count += 1
    return count


async def test_R01_resume_before_anything_ever_happened(tmp_path: Path) -> None:
    """[R1] [R4]: a tab that saw only `opened` has a position, across a kill and on a file of SillyTavern too."""
    data = sillytavern_copy(tmp_path)
    before = tree(data)
    real = "character:Pip/Pip - 2024-09-30@09h00m00s"
    async with ForkedServer(data) as server:
        session = new_session()
        tab = await TabClient.join(server.url, session)
        made = await tab.open(CHAT, create=True)
        found = await tab.open(real)
        assert found["head"]["seq"] == 0
        for kill in (False, True):
            tab.raw.abort()
            if kill:
                await server.kill()
                await server.start()
            tab = await TabClient.join(server.url, session)
            for chat, opened in ((CHAT, made), (real, found)):
                again = await tab.open(chat, since=opened["head"])
                assert (again["mode"], again["head"], again["next_op"]) == ("current", opened["head"], 1)
                assert "messages" not in again
                assert again["chat_id"] == opened["chat_id"]
        await tab.raw.expect_silence()
    after = tree(data)
    assert {path: after[path] for path in before} == before, "only read, nothing written"


async def test_R02_R07_resume_again_and_again_brings_each_commit_once(tmp_path: Path) -> None:
    """[R6]: twice in a row without news is silence; after every reconnect the order is that of the commits."""
    async with running(tmp_path) as app:
        writer = await TabClient.join(app.urls[0])
        replica = Replica()
        session = new_session()
        replica.take(await writer.open(CHAT, create=True))
        for round_ in range(5):
            for text in range(round_):
                await writer.append(CHAT, f"{round_}.{text}")
            tab = await TabClient.join(app.urls[0], session)
            assert await caught_up(tab, replica) == round_
            assert await caught_up(tab, replica) == 0
            await writer.append(CHAT, f"{round_} live")
            assert replica.follow(await tab.raw.receive_until(type="integrity"))
            assert await caught_up(tab, replica) == 0
            await tab.raw.expect_silence(0.02)
            tab.raw.abort()
        opened = await writer.open(CHAT)
        assert list(replica.messages.values()) == opened["messages"]


async def test_R04_an_old_epoch_with_any_offset_is_never_continued(tmp_path: Path) -> None:
    """[R1] [R3] [V4]: epoch, seq and integrity all have to fit, and every answer carries the whole position."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        first = (await tab.append(CHAT, "one"))["version"]
        await tab.append(CHAT, "two")
        path = tmp_path / FILE
        # A checkpoint that is under way finds the edit itself, a moment later than an open would.
        [actor] = app._hub.actors
        await until(lambda: path.exists() and b"two" in path.read_bytes() and not actor.folding)
        path.write_bytes(path.read_bytes().rstrip(b"\n") + b'\n{"name":"U","mes":"outside"}\n')
        newcomer = await TabClient.join(app.urls[0])
        now = (await newcomer.open(CHAT))["head"]
        assert now["epoch"] == 2
        assert now["seq"] > first["seq"], "seq goes on"
        wrong = [
            (first, "epoch"),
            ({**first, "seq": now["seq"]}, "epoch"),
            ({**now, "integrity": first["integrity"]}, "epoch"),
            ({**first, "epoch": 2}, None),
            ({**now, "seq": now["seq"] + 1}, "ahead"),
            ({**now, "epoch": 3}, "ahead"),
        ]
        for since, reset in wrong:
            opened = await newcomer.open(CHAT, since=since)
            assert opened["mode"] == "snapshot", since
            assert opened.get("reset") in ((reset,) if reset else ("epoch", "trimmed")), since
            assert opened["head"] == now
            assert texts(opened["messages"]) == ["one", "two", "outside"]
        assert (await newcomer.open(CHAT, since=now))["mode"] == "current"


async def test_R05_a_name_that_begins_again_is_another_chat(tmp_path: Path) -> None:
    """[R1] [R3]: deleted outside and made anew, the same name has a new chat_id, and the old position leads nowhere."""
    data = tmp_path / "data"
    async with ForkedServer(data) as server:
        tab = await TabClient.join(server.url)
        old = await tab.open(CHAT, create=True)
        position = (await tab.append(CHAT, "old"))["version"]
        await tab.close()
        assert await server.stop() == 0
        for sibling in list((data / FILE).parent.iterdir()):
            sibling.unlink()
        await server.start()
        back = await TabClient.join(server.url)
        gone = await back.open(CHAT, since=position)
        assert (gone["type"], gone["code"]) == ("error", "not-found")
        new = await back.open(CHAT, create=True)
        assert (new["created"], new["messages"]) == (True, [])
        assert new["chat_id"] != old["chat_id"]
        assert new["next_op"] == 1
        await back.append(CHAT, "new")
        resumed = await back.open(CHAT, since=position)
        assert resumed["mode"] == "snapshot"
        assert resumed["reset"] in ("epoch", "trimmed", "ahead")
        assert texts(resumed["messages"]) == ["new"]
        for kill in (False, True):
            if kill:
                await server.kill()
                await server.start()
                back = await TabClient.join(server.url)
            by_id = await back.open(f"id:{old['chat_id']}", since=position)
            assert (by_id["type"], by_id["code"]) == ("error", "not-found"), "the old id is not the new chat"
            again = await back.open(CHAT)
            assert (again["chat_id"], texts(again["messages"])) == (new["chat_id"], ["new"])


async def test_R06_R08_R46_open_under_fire_twice_is_one_subscription_and_nothing_twice(tmp_path: Path) -> None:
    """[D2] [D3]: snapshot, replay and live commits meet without a gap or a repetition; two opens tell once."""
    async with running(tmp_path) as app:
        writer = await TabClient.join(app.urls[0])
        started = await writer.open(CHAT, create=True)
        stop = asyncio.Event()

        async def write() -> None:
            count = 0
            while not stop.is_set():
                count += 1
                await writer.append(CHAT, f"{count}")

        writing = asyncio.create_task(write())
        try:
            for turn in range(10):
                raw = await RawClient.connect(app.urls[0])
                await raw.send({"type": "hello", "protocol": 1, "session": new_session(), "token": None})
                await raw.receive_until(type="welcome")
                since = None if turn % 2 else started["head"]
                for number in (1, 2):
                    await raw.send({"type": "open", "id": number, "chat": CHAT, "since": since})
                replica = Replica()
                opened: list[dict[str, Any]] = []
                live = 0
                while live < 30:
                    frame = await raw.receive()
                    if frame["type"] == "opened":
                        opened.append(frame)
                        replica = Replica()
                        if frame["mode"] == "snapshot":
                            replica.take(frame)
                        else:
                            replica.take(started)
                    else:
                        assert replica.follow(frame), "nothing twice"
                        live += len(opened) == 2
                assert sorted(frame["id"] for frame in opened) == [1, 2]
                raw.abort()
        finally:
            stop.set()
            await writing
        # R46: what is committed now is told once.
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT)
        await tab.open(CHAT)
        await writer.append(CHAT, "once")
        await tab.raw.receive_until(type="integrity")
        await tab.raw.expect_silence()


async def test_R28_a_stale_tab_after_a_restart_cannot_wipe_the_chat(tmp_path: Path) -> None:
    """[B1] [B8]: its old base is a conflict, a missing base an error, and the messages stay."""
    async with ForkedServer(tmp_path / "data") as server:
        session = new_session()
        stale = await TabClient.join(server.url, session)
        opened = await stale.open(CHAT, create=True)
        fresh = await TabClient.join(server.url)
        await fresh.open(CHAT)
        ack = await fresh.append(CHAT, "one", "two")
        stale.raw.abort()
        await server.kill()
        await server.start()
        tab = await TabClient.join(server.url, session)
        base = opened["head"]["integrity"]
        tab.ops[CHAT] = 0
        wipe = await tab.write("delete", CHAT, base=base, messages=ack["messages"])
        assert wipe["type"] == "conflict"
        assert [missed["version"] for missed in wipe["missed"]] == [ack["version"]]
        assert (await tab.write("delete", CHAT, messages=ack["messages"]))["code"] == "base-required"
        assert (await tab.write("metadata-update", CHAT, base=base, set={}))["type"] == "conflict"
        whole = await tab.write("patch", CHAT, base=base, patch=[{"op": "replace", "path": "/messages", "value": []}])
        assert whole["type"] in ("conflict", "error")
        assert texts((await tab.open(CHAT))["messages"]) == ["one", "two"]


async def test_R32_history_that_was_trimmed_is_an_explicit_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[R2] [R3]: more than stream and log remember is a snapshot that says `trimmed`, before and after a restart."""
    monkeypatch.setattr(keeper, "COLLECT_S", 0.05)
    big = "x" * 300_000
    settings: dict[str, Any] = {"log_segment_bytes": 1 << 20, "log_retain_bytes": 0, "idle_s": 0.05}
    async with running(tmp_path, **settings) as app:
        tab = await TabClient.join(app.urls[0])
        first = (await tab.open(CHAT, create=True))["head"]
        ack = await tab.append(CHAT, big)
        base = ack["version"]["integrity"]
        for turn in range(8):
            patch = [{"op": "replace", "path": "/mes", "value": f"{turn}{big}"}]
            answer = await tab.write("patch", CHAT, base=base, message=ack["messages"][0], patch=patch)
            base = answer["version"]["integrity"]
        await until(lambda: not (tmp_path / ".tellback" / "log" / f"{1:020}.log").exists())
        await trimmed(tab, first, answer["version"], f"7{big}")
    async with running(tmp_path, **settings) as app:
        await trimmed(await TabClient.join(app.urls[0]), first, answer["version"], f"7{big}")


async def trimmed(tab: TabClient, first: dict[str, Any], last: dict[str, Any], text: str) -> None:
    opened = await tab.open(CHAT, since=first)
    assert (opened["mode"], opened["reset"]) == ("snapshot", "trimmed")
    assert texts(opened["messages"]) == [text]
    # [R1] and what is remembered may still be replayed.
    assert (await tab.open(CHAT, since=last))["mode"] == "current"


async def test_R35_R38_each_tab_gets_what_it_has_open_after_every_reconnect(tmp_path: Path) -> None:
    """[D3]: several chats on one connection are told apart, and a chat that is not open is not told."""
    chats = [f"character:Alice/{name}" for name in ("one", "two", "three")]
    async with ForkedServer(tmp_path / "data") as server:
        session = new_session()
        writer = await TabClient.join(server.url)
        replicas = {chat: Replica() for chat in chats}
        for chat in chats:
            replicas[chat].take(await writer.open(chat, create=True))
            await writer.ask("close", chat=chat)
        for turn in range(3):
            tab = await TabClient.join(server.url, session)
            for chat in chats[:2]:
                await caught_up(tab, replicas[chat], chat)
            for chat in chats:
                assert (await writer.append(chat, f"{turn} live"))["type"] == "ack"
            for chat in chats[:2]:
                assert replicas[chat].follow(await tab.raw.receive_until(type="integrity", chat=chat))
            await tab.raw.expect_silence(0.05)
            tab.raw.abort()
            for chat in chats:
                await writer.append(chat, f"{turn} away")
            if turn == 1:
                await server.kill()
                await server.start()
                numbers = writer.ops
                writer = await TabClient.join(server.url, writer.session)
                writer.ops = numbers
        tab = await TabClient.join(server.url, session)
        for chat in chats:
            await caught_up(tab, replicas[chat], chat)
            assert texts(list(replicas[chat].messages.values())) == texts((await tab.open(chat))["messages"])


async def test_R40_a_gap_can_be_seen_and_filled_from_the_history(tmp_path: Path) -> None:
    """[R6] [H1]: `previous` of every frame shows a gap; the pages of the history are the same frames."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open(CHAT, create=True)
        other = await TabClient.join(app.urls[0])
        await other.open(CHAT)
        for number in range(6):
            await tab.append(CHAT, f"{number}")
        live = [await other.raw.receive_until(type="integrity") for _ in range(6)]
        replica = Replica()
        replica.take(opened)
        page = await tab.ask("history", chat=CHAT, after=opened["head"]["seq"], limit=4)
        rest = await tab.ask("history", chat=CHAT, after=page["commits"][-1]["version"]["seq"], limit=4)
        assert (page["more"], rest.get("more", False)) == (True, False)
        assert page["commits"] + rest["commits"] == live
        # Two frames are withheld from this replica: it notices at the next one and fills the hole.
        for frame in live[:2]:
            replica.follow(frame)
        try:
            replica.follow(live[4])
        except AssertionError:
            pass
        else:
            raise AssertionError("a gap must be visible")
        for frame in page["commits"] + rest["commits"]:
            replica.follow(frame)
        assert texts(list(replica.messages.values())) == [f"{number}" for number in range(6)]


async def test_R42_a_long_backlog_comes_in_small_frames(tmp_path: Path) -> None:
    """[R5] [R6]: a replay is a frame a commit, a big snapshot parts of about 64 KiB, each of whole messages."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        since = (await tab.append(CHAT, "before " + "z" * 100_000))["version"]
        for number in range(60):
            await tab.append(CHAT, f"{number} " + "y" * 10_000)
        late = await TabClient.join(app.urls[0])
        opened = await late.ask("open", chat=CHAT, since=since)
        assert opened["mode"] == "replay"
        sizes = []
        for _ in range(60):
            raw = await late.raw.connection.recv(decode=False)
            sizes.append(len(raw))
        assert max(sizes) < 12_000
        snapshot = await late.ask("open", chat=CHAT, since=None)
        assert snapshot["parts"] == 11
        numbers: list[str] = []
        for part in range(1, snapshot["parts"] + 1):
            raw = await late.raw.connection.recv(decode=False)
            assert len(raw) < (80_000 if part > 1 else 110_000)
            frame = json.loads(raw)
            assert (frame["type"], frame["part"], frame["of"]) == ("snapshot-part", part, snapshot["parts"])
            numbers += [message["mes"].split()[0] for message in frame["messages"]]
        assert numbers == ["before", *map(str, range(60))]


async def test_R42_a_replay_larger_than_the_chat_is_a_snapshot_instead(tmp_path: Path) -> None:
    """[R2]: a message that was patched a hundred times is sent once."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        since = (await tab.open(CHAT, create=True))["head"]
        ack = await tab.append(CHAT, "x")
        base = ack["version"]["integrity"]
        for number in range(100):
            patch = [{"op": "replace", "path": "/mes", "value": f"{number}" * 1000}]
            answer = await tab.write("patch", CHAT, base=base, message=ack["messages"][0], patch=patch)
            base = answer["version"]["integrity"]
        opened = await tab.open(CHAT, since=since)
        assert (opened["mode"], opened.get("reset")) == ("snapshot", None)
        assert texts(opened["messages"]) == ["99" * 1000]


async def test_a_restored_copy_of_the_data_folder_is_ahead_or_behind_and_says_so(tmp_path: Path) -> None:
    """[R3]: a tab that knows more than the server was told of data loss, not silently continued."""
    data = tmp_path / "data"
    async with ForkedServer(data, checkpoint_interval_s=0.02) as server:
        tab = await TabClient.join(server.url)
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "kept")
        await tab.close()
        assert await server.stop() == 0
        shutil.copytree(data, tmp_path / "copy")
        await server.start()
        tab = await TabClient.join(server.url)
        await tab.open(CHAT)
        lost = (await tab.append(CHAT, "lost with the disk"))["version"]
        await tab.close()
        assert await server.stop() == 0
        shutil.rmtree(data)
        shutil.copytree(tmp_path / "copy", data)
        await server.start()
        tab = await TabClient.join(server.url)
        opened = await tab.open(CHAT, since=lost)
        assert (opened["mode"], opened["reset"]) == ("snapshot", "ahead")
        again = await tab.append(CHAT, "anew")
        assert again["version"]["seq"] == lost["seq"]
        assert again["version"]["integrity"] != lost["integrity"]
        opened = await tab.open(CHAT, since=lost)
        assert (opened["mode"], opened["reset"]) == ("snapshot", "epoch")
        assert texts(opened["messages"]) == ["kept", "anew"]


async def test_R27_a_write_goes_to_the_chat_it_names_whatever_was_opened_meanwhile(tmp_path: Path) -> None:
    """[N6]: pipelined switches between chats mix nothing up, by name and by id."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        ids = {chat: (await tab.open(chat, create=True))["chat_id"] for chat in (CHAT, OTHER)}
        frames: list[dict[str, Any]] = []
        for op in range(1, 11):
            chat, away = (CHAT, OTHER) if op % 2 else (OTHER, CHAT)
            frames.append({"type": "append", "chat": f"id:{ids[chat]}" if op % 3 else chat, "op": (op + 1) // 2,
                           "base": "*", "messages": [{"mes": f"{chat} {op}"}]})
            frames.append({"type": "close", "chat": chat})
            frames.append({"type": "open", "chat": away, "since": None})
        for number, frame in enumerate(frames):
            await tab.raw.send({**frame, "id": 100 + number})
        for number, frame in enumerate(frames):
            answer = await tab.raw.receive_until(id=100 + number)
            assert answer["type"] == {"append": "ack", "close": "closed", "open": "opened"}[frame["type"]]
            assert answer["chat"] == frame["chat"], "echoed under the name that was used"
            if frame["type"] == "append":
                assert effects_of(frame, answer)
        for chat, odd in ((CHAT, 1), (OTHER, 0)):
            opened = await tab.open(chat)
            assert texts(opened["messages"]) == [f"{chat} {op}" for op in range(1, 11) if op % 2 == odd]
