"""Chats come from files, are folded back, and leave memory."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tellback_server import reads
from tests.support.forked_server import ForkedServer
from tests.support.held_fs import HeldFs
from tests.support.server import TabClient, running, sillytavern_copy, texts, tree
from tests.support.waiting import GUARD_S, until

CHAT = "character:Alice/First meeting"
FILE = "default-user/chats/Alice/First meeting.jsonl"


def said(path: Path) -> list[str]:
    return [json.loads(line)["mes"] for line in path.read_bytes().split(b"\n")[1:] if line]


async def test_the_files_trail_the_log_by_the_interval_and_one_checkpoint_takes_many_commits(tmp_path: Path) -> None:
    """[K1] [K2]: an ack never waits for a file, and a burst is folded at once."""
    async with running(tmp_path, checkpoint_interval_s=0.2) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        began_s = time.monotonic()
        for number in range(200):
            await tab.append(CHAT, f"{number}")
        await until(lambda: (tmp_path / FILE).exists() and len(said(tmp_path / FILE)) == 200)
        assert app.counters.checkpoints <= 3 + (time.monotonic() - began_s) / 0.2, "no more than the interval allows"
        # The file is complete a moment before the checkpoint is: its sidecar and its record come last.
        await until(lambda: app._keeper.lag_s() == 0 and not any(actor.folding for actor in app._hub.actors))
        checkpoints = app.counters.checkpoints
        before = tree(tmp_path)
        await asyncio.sleep(0.5)
        assert app.counters.checkpoints == checkpoints, "nothing new, nothing written"
        assert tree(tmp_path) == before


async def test_commits_that_come_during_a_checkpoint_are_folded_by_the_next(tmp_path: Path) -> None:
    """[K1]: one at a time for a chat; the answer does not wait."""
    fs = HeldFs()
    data = sillytavern_copy(tmp_path)
    chat = "character:Pip/Pip - 2024-11-01@12h00m00s"
    path = data / "default-user/chats/Pip/Pip - 2024-11-01@12h00m00s.jsonl"
    async with running(data, fs=fs, checkpoint_interval_s=0.02) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(chat)
        fs.hold_reads()
        await tab.append(chat, "first")
        assert await asyncio.to_thread(fs.waits.wait, GUARD_S), "the checkpoint has begun"
        for number in range(20):
            assert (await tab.append(chat, f"meanwhile {number}"))["type"] == "ack"
        [actor] = app._hub.actors
        assert actor.folding
        fs.let_go()
        await until(lambda: b"meanwhile 19" in path.read_bytes())
        assert said(path)[-21:] == ["first", *(f"meanwhile {number}" for number in range(20))]


async def test_an_open_during_a_checkpoint_waits_alone_and_is_answered_out_of_what_is_there_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[K1] [K3]: nobody else waits; and a disk that stands still is not waited for."""
    fs = HeldFs()
    data = sillytavern_copy(tmp_path)
    chat = "character:Pip/Pip - 2024-11-01@12h00m00s"
    path = data / "default-user/chats/Pip/Pip - 2024-11-01@12h00m00s.jsonl"
    async with running(data, fs=fs, checkpoint_interval_s=0.02) as app:
        monkeypatch.setattr(reads, "CHECKPOINT_WAIT_S", 60)
        tab, other = await TabClient.join(app.urls[0]), await TabClient.join(app.urls[0])
        await tab.open(chat)
        fs.hold_reads()
        await tab.append(chat, "ours")
        assert await asyncio.to_thread(fs.waits.wait, GUARD_S), "the checkpoint has begun"
        path.write_bytes(path.read_bytes() + b'\n{"name":"Pip","is_user":false,"mes":"from elsewhere"}')
        opening = asyncio.create_task(other.open(chat))
        assert (await tab.append(chat, "meanwhile"))["type"] == "ack"
        assert not opening.done()
        fs.let_go()
        assert texts((await opening)["messages"])[-3:] == ["from elsewhere", "ours", "meanwhile"]
        await until(lambda: said(path)[-1] == "meanwhile")

        monkeypatch.setattr(reads, "CHECKPOINT_WAIT_S", 0.01)
        fs.hold_reads()
        await tab.open(chat)
        await tab.append(chat, "more")
        assert await asyncio.to_thread(fs.waits.wait, GUARD_S)
        assert texts((await other.open(chat))["messages"])[-1] == "more"
        fs.let_go()


async def test_reading_writes_nothing_and_an_idle_chat_leaves_memory(tmp_path: Path) -> None:
    """[K4], STORAGE F1: every chat of a real folder is opened, read, closed and let go; not a byte changes."""
    data = sillytavern_copy(tmp_path)
    before = tree(data)
    async with running(data, idle_s=0.02) as app:
        tab = await TabClient.join(app.urls[0])
        count = 0
        for path in sorted((data / "default-user" / "chats").rglob("*.jsonl")):
            chat = f"character:{path.parent.name}/{path.stem}"
            opened = await tab.open(chat)
            assert opened["type"] == "opened", chat
            await tab.ask("state-get", owner={"chat": chat})
            await tab.ask("history", chat=chat)
            count += opened["count"]
            assert (await tab.ask("close", chat=chat))["type"] == "closed"
        assert count > 1000
        await until(lambda: app._hub.actors == [])
    assert tree(data) == before


async def test_an_outside_edit_of_an_open_chat_is_noticed_at_the_next_checkpoint(tmp_path: Path) -> None:
    """[K3]: also when nobody opens it anew."""
    path = tmp_path / FILE
    with capture_logs() as logs:
        async with running(tmp_path, checkpoint_interval_s=0.05) as app:
            tab = await TabClient.join(app.urls[0])
            await tab.open(CHAT, create=True)
            await tab.append(CHAT, "ours")
            await until(lambda: path.exists() and app._keeper.lag_s() == 0 and not app._hub.actors[0].folding)
            path.write_bytes(path.read_bytes() + b'{"mes":"theirs"}\n')
            assert (await tab.append(CHAT, "ours too"))["type"] == "ack"
            assert (await tab.raw.receive_until(type="reset"))["reason"] == "outside-edit"
            assert texts((await tab.open(CHAT))["messages"]) == ["ours", "theirs", "ours too"]
            assert app.counters.outside_edits == 1
    assert said(path) == ["ours", "theirs", "ours too"]
    assert "outside-edit-adopted" in [line["event"] for line in logs]


async def test_what_a_crash_left_is_folded_after_the_start_opened_or_not(tmp_path: Path) -> None:
    """[K5]: several chats, none of them asked for."""
    data = tmp_path / "data"
    chats = [f"character:Alice/chat {number}" for number in range(5)]
    async with ForkedServer(data, checkpoint_interval_s=600) as server:
        tab = await TabClient.join(server.url)
        for chat in chats:
            await tab.open(chat, create=True)
            await tab.append(chat, "only in the log")
        await server.kill()
        assert not list(data.rglob("*.jsonl"))
        await server.start()
        # A stop right after the start waits for it; the interval is ten minutes.
        assert await server.stop() == 0
        for chat in chats:
            path = data / "default-user" / "chats" / f"{chat.removeprefix('character:')}.jsonl"
            assert said(path) == ["only in the log"]


async def test_the_log_forgets_what_is_in_files_and_session_files(tmp_path: Path) -> None:
    """[O8] [K4]: after the segments are gone, ops and versions are still known."""
    async with running(tmp_path, log_segment_bytes=64 << 10, log_retain_bytes=0, log_retain_days=0,
                       checkpoint_interval_s=0.02) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        for number in range(100):
            ack = await tab.append(CHAT, f"{number} " + "x" * 3000)
        await until(lambda: app._keeper.lag_s() == 0 and not app._hub.actors[0].folding)
        before = app._log.segment_count
        await app._keeper._collect()
        assert app._log.segment_count < before
        session = tab.session
    async with running(tmp_path) as app:
        back = await TabClient.join(app.urls[0], session)
        opened = await back.open(CHAT, since=ack["version"])
        assert (opened["mode"], opened["next_op"]) == ("current", 101)
        last = [{"name": "User", "is_user": True, "mes": "99 " + "x" * 3000}]
        again = await back.ask("append", chat=CHAT, op=100, base="*", messages=last)
        assert (again["version"], again["duplicate"]) == (ack["version"], True)
        assert len((await back.open(CHAT))["messages"]) == 100


async def test_a_state_file_that_appears_beside_a_live_chat_is_seen(tmp_path: Path) -> None:
    """[K7] [Q6]: at an open, by name, among all, before a write makes it; broken ones are told as broken."""
    folder = tmp_path / FILE.rsplit("/", 1)[0]
    owner = {"chat": CHAT}

    def outside(namespace: str, text: str) -> Path:
        path = folder / f"First meeting.luker-state.{namespace}.json"
        path.write_text(text)
        return path

    async with running(tmp_path, checkpoint_interval_s=0.02) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one")
        await until(lambda: app._keeper.lag_s() == 0 and not app._hub.actors[0].folding)
        outside("named", '{"n":1}')
        assert (await tab.ask("state-get", owner=owner, namespaces=["named"]))["states"]["named"]["data"] == {"n": 1}
        outside("among", "[2]")
        assert (await tab.ask("state-get", owner=owner))["states"].keys() == {"named", "among"}
        outside("opened", "[3]")
        opened = await tab.open(CHAT)
        assert opened["head"]["epoch"] == 4, "one epoch for each"
        path = outside("written", "[4]")
        made = await tab.write_state("state-update", CHAT, namespace="written", base=None, set=["ours"])
        assert made["type"] == "conflict"
        assert made["namespace"] == "written"
        await until(lambda: app._keeper.lag_s() == 0 and not app._hub.actors[0].folding)
        assert path.read_text() == "[4]"
        for number, request in enumerate(("get", "write")):
            outside(f"broken{number}", "{broken")
            if request == "get":
                got = await tab.ask("state-get", owner=owner, namespaces=["broken0"])
            else:
                got = await tab.write_state("state-update", CHAT, namespace="broken1", base=None, set=[1])
            assert got["code"] == "state-corrupt", got
        assert texts((await tab.open(CHAT))["messages"]) == ["one"]


async def test_a_folder_that_never_stands_still_delays_no_open_for_ever(tmp_path: Path) -> None:
    """[K7]: another program works in it all the time; one listing for each answer."""
    async with running(tmp_path, checkpoint_interval_s=0.02) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await until(lambda: app._keeper.lag_s() == 0 and not app._hub.actors[0].folding)
        for number in range(100):
            (tmp_path / FILE).with_name(f"{number}.txt").write_text("")
            assert (await tab.open(CHAT))["head"]["epoch"] == 1


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_live_chat_that_is_moved_by_hand_with_its_chat_sync_goes_on_where_it_is(
    tmp_path: Path, is_open: bool
) -> None:
    """[K3] [X13] Asked for under its new name it is the same chat at once, with what no file held yet; a tab that has
    the old one open opens again.
    """
    moved = "character:Alice/Moved"
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        first = await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one")
    path = tmp_path / FILE
    async with running(tmp_path, checkpoint_interval_s=600) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT)
        assert (await tab.append(CHAT, "two"))["type"] == "ack"
        if not is_open:
            await tab.ask("close", chat=CHAT)
        for file in path.parent.iterdir():
            file.rename(path.parent / file.name.replace("First meeting", "Moved"))
        other = await TabClient.join(app.urls[0])
        opened = await other.open(moved)
        assert (opened["type"], opened["chat_id"]) == ("opened", first["chat_id"]), opened
        assert texts(opened["messages"]) == ["one", "two"]
        if is_open:
            assert (await tab.raw.receive_until(type="reset"))["reason"] == "failed"
        assert (await tab.open(CHAT))["type"] == "error"
        by_id = await tab.open(f"id:{first['chat_id']}")
        assert (by_id["chat_id"], texts(by_id["messages"])) == (first["chat_id"], ["one", "two"])
        assert (await other.append(moved, "three"))["type"] == "ack"
    assert said(path.with_name("Moved.jsonl")) == ["one", "two", "three"]


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("behind", ["", '{"name":"Luker","mes":"appended"}\n'])
async def test_the_states_of_a_chat_that_another_program_renames_follow_its_file(
    tmp_path: Path, is_open: bool, behind: str
) -> None:
    """[Q8] SillyTavern copies the `.jsonl` and removes the old one; nothing else is told or moved."""
    moved = "character:Alice/Moved"
    owner = {"chat": moved}
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        first = await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one")
        written = await tab.write_state("state-update", CHAT, namespace="memory", base=None, set=["kept"])
        assert written["type"] == "ack"
    path = tmp_path / FILE
    async with running(tmp_path, checkpoint_interval_s=600) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT)
        assert (await tab.append(CHAT, "two"))["type"] == "ack"
        if not is_open:
            await tab.ask("close", chat=CHAT)
        path.with_name("Moved.jsonl").write_bytes(path.read_bytes() + behind.encode())
        path.unlink()
        other = await TabClient.join(app.urls[0])
        opened = await other.open(moved)
        assert (opened["type"], opened["chat_id"]) == ("opened", first["chat_id"]), opened
        assert sorted(texts(opened["messages"])) == sorted(["one", "two", *(["appended"] if behind else [])])
        assert (await other.ask("state-get", owner=owner))["states"]["memory"]["data"] == ["kept"]
        if is_open:
            assert (await tab.raw.receive_until(type="reset"))["reason"] == "failed"
        assert (await tab.open(CHAT))["type"] == "error"
        assert (await other.append(moved, "three"))["type"] == "ack"
        assert not list(path.parent.glob("First meeting*"))
    assert said(path.with_name("Moved.jsonl"))[-1] == "three"
    async with running(tmp_path) as app:
        again = await TabClient.join(app.urls[0])
        assert (await again.open(moved))["chat_id"] == first["chat_id"]
        assert (await again.ask("state-get", owner=owner))["states"]["memory"]["data"] == ["kept"]
