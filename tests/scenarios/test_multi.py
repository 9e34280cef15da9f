"""Primary and backup: saves go to the one, the log brings the other up, reads fall back, nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tellback_protocol.ids import Version
from tellback_server.config import ConfigurationError
from tellback_server.store.schemes import open_store
from tests.support.server import TabClient, running, sillytavern_copy, texts, tree
from tests.support.stored import USER, caught_up, sqlite_url, stored
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"


def pair(folder: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a server on two files."""
    return {
        "store": "multi", "primary": sqlite_url(folder / "primary"), "backup": sqlite_url(folder / "backup"),
        "flush_interval_s": 0.05, **settings,
    }


async def test_the_backup_gets_everything_from_the_log(tmp_path: Path) -> None:
    """[SM1]: appends, patches, deletions, states and metadata; by integrity and byte by byte."""
    settings = pair(tmp_path)
    async with running(tmp_path / "data", **settings) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one", "two", "three")
        found = await caught_up(settings["backup"], tab, CHAT)
        assert len(found.messages) == 3
        first = next(iter(found.messages))
        answer = await tab.write("delete", CHAT, base=found.version.integrity, messages=[first])
        assert answer["type"] == "ack", answer
        await tab.append(CHAT, "four")
        await tab.write_state("state-update", CHAT, namespace="memory", base=None, set={"in": "memory"})
        second = list(found.messages)[1]
        change = [{"op": "replace", "path": "/mes", "value": "changed"}]
        base = (await tab.open(CHAT))["version"]["integrity"]
        assert (await tab.write("patch", CHAT, base=base, message=second, patch=change))["type"] == "ack"
        await caught_up(settings["backup"], tab, CHAT)
        await caught_up(settings["primary"], tab, CHAT)


async def test_rename_delete_and_restore_reach_the_backup(tmp_path: Path) -> None:
    """[SM5]: a character with its chats, too."""
    settings = pair(tmp_path)
    async with running(tmp_path / "data", **settings) as app:
        tab = await TabClient.join(app.urls[0])
        chat_id = (await tab.open(CHAT, create=True))["chat_id"]
        await tab.append(CHAT, "one")
        await caught_up(settings["backup"], tab, CHAT)
        answer = await tab.write("chat-rename", CHAT, to="Second", base="*")
        assert answer["type"] == "ack", answer
        await until(lambda: named(settings["backup"], chat_id) == "character:Alice/Second")
        to = "character:Alice/Second"
        opened = await tab.open(to)
        assert (await tab.write("chat-delete", to, base=opened["version"]["integrity"]))["type"] == "ack"
        await until(lambda: stored(settings["backup"], chat_id) is None)
        assert stored(settings["primary"], chat_id) is None
        tab.ops[f"id:{chat_id}"] = tab.ops[to]
        answer = await tab.write("chat-restore", f"id:{chat_id}")
        assert answer["type"] == "ack", answer
        await until(lambda: stored(settings["backup"], chat_id) is not None)
        assert texts((await tab.open(to))["messages"]) == ["one"]
        await tab.append(to, "two")
        assert len((await caught_up(settings["backup"], tab, to)).messages) == 2


@pytest.mark.parametrize("primary", ["files", "sqlite"])
async def test_a_flush_costs_what_changed(primary: str, tmp_path: Path) -> None:
    """[SM1] [ST7]: a message more in a long chat brings the backup a message, and not the chat."""
    settings = pair(tmp_path)
    if primary == "files":
        settings["primary"] = "files"
    async with running(tmp_path / "data", **settings) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        for _ in range(10):
            await tab.append(CHAT, *("x" * 1000 for _ in range(200)))
        await caught_up(settings["backup"], tab, CHAT)
        write_ahead = tmp_path / "backup/chats.db-wal"
        before = write_ahead.stat().st_size
        await tab.append(CHAT, "one more")
        assert len((await caught_up(settings["backup"], tab, CHAT)).messages) == 2001
        assert write_ahead.stat().st_size - before < 200_000


async def test_a_folder_of_chats_is_mirrored(tmp_path: Path) -> None:
    """[SM2]: chats that nobody opened, what tellback writes, what others write; nothing is written into the folder."""
    data = sillytavern_copy(tmp_path)
    before = tree(data)
    url = sqlite_url(tmp_path / "backup")
    settings = {"store": "multi", "primary": "files", "backup": url, "flush_interval_s": 0.05}
    async with running(data, **settings) as app:
        tab = await TabClient.join(app.urls[0])
        chats = [one["chat"] for one in (await tab.ask("chat-list"))["chats"]]
        await until(lambda: len(listed(url)) >= len(chats))
        assert sorted(listed(url)) == sorted(chats)
        assert tree(data) == before
        for chat in chats[:3]:
            await caught_up(url, tab, chat)
        await tab.append(chats[0], "from tellback")
        found = await caught_up(url, tab, chats[0])
        assert b"from tellback" in list(found.messages.values())[-1]
    async with running(data, **settings) as app:
        # What nobody changed is not read again, what somebody else changed meanwhile is.
        tab = await TabClient.join(app.urls[0])
        await caught_up(url, tab, chats[0])


async def test_what_another_program_removed_holds_up_nothing_and_stays_in_the_mirror(tmp_path: Path) -> None:
    """[SM2]: the position moves on; and what another program wrote into a chat that nobody has open arrives."""
    data, url = tmp_path / "data", sqlite_url(tmp_path / "backup")
    data.mkdir()
    settings = {"store": "multi", "primary": "files", "backup": url, "flush_interval_s": 0.05, "idle_s": 0.1}
    gone, other = CHAT, "character:Alice/Other"
    async with running(data, **settings) as app:
        tab = await TabClient.join(app.urls[0])
        ids = {}
        for chat in (gone, other):
            ids[chat] = (await tab.open(chat, create=True))["chat_id"]
            await tab.append(chat, "one")
            await caught_up(url, tab, chat)
    folder = next(data.rglob("First meeting.jsonl")).parent
    for path in folder.glob("First meeting*"):
        path.unlink()
    with (folder / "Other.jsonl").open("a") as file:
        file.write('{"name":"Alice","is_user":false,"mes":"from another program"}\n')
    (data / ".tellback/flushed").unlink()
    async with running(data, **settings) as app:
        tab = await TabClient.join(app.urls[0])
        await until(lambda: len(texts_of(url, ids[other])) == 2)
        assert texts_of(url, ids[other]) == ["one", "from another program"]
        assert texts_of(url, ids[gone]) == ["one"]
        await until(lambda: app._storage.reports[1].pending_entries == 0)
        assert app._storage.reports[1].state == "up"


def texts_of(url: str, chat_id: str) -> list[str]:
    """What a store's chat says."""
    found = stored(url, chat_id)
    return [] if found is None else [json.loads(line)["mes"] for line in found.messages.values()]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"primary": "files", "backup": "foo://x"}, "--backup: no store is called 'foo'"),
        ({"primary": "foo://x", "backup": "memory:"}, "--primary: no store is called 'foo'"),
        ({"primary": "files", "backup": "sqlite:///x.db?synchronous=off"}, "--backup: "),
    ],
)
async def test_a_store_that_cannot_be_used_is_named_by_its_setting(
    flags: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        async with running(tmp_path / "data", store="multi", **flags):
            pass


async def test_a_backup_of_another_folder_is_refused(tmp_path: Path) -> None:
    """[ST10]."""
    url = sqlite_url(tmp_path / "backup")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    async with running(tmp_path / "one", store="multi", primary="files", backup=url):
        pass
    with pytest.raises(ConfigurationError, match="--backup: the store belongs to another data folder"):
        async with running(tmp_path / "two", store="multi", primary="files", backup=url):
            pass


def listed(url: str) -> list[str]:
    """Names in a store."""
    store = open_store(url)
    try:
        store.check()
        return [one.name for one in store.list(USER)]
    finally:
        store.close()


def named(url: str, chat_id: str) -> str | None:
    found = stored(url, chat_id)
    return None if found is None else found.name


@pytest.mark.parametrize("at", ["same", "earlier"])
async def test_what_gives_way_of_two_histories_is_a_chat_of_its_own(at: str, tmp_path: Path) -> None:
    """[SM10]: told once, kept once, through restarts; both stores hold it, and the other chat is as it was."""
    settings = pair(tmp_path)
    async with running(tmp_path / "data", **settings) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one", "two")
        await tab.write_state("state-update", CHAT, namespace="memory", base=None, set={"in": "memory"})
        was = await caught_up(settings["backup"], tab, CHAT)
        opened = await tab.open(CHAT)
    first = next(iter(was.messages))
    seq = was.head.seq if at == "same" else was.head.seq - 1
    head = Version(1, seq, "0e5c0f9a-1111-4222-8333-444455556666")
    other = msgspec.structs.replace(
        was, head=head, version=head, messages={first: was.messages[first], "x": b'{"id":"x","mes":"elsewhere"}'},
        metadata=b'{"integrity":"of the source","note":"n"}',
    )
    with contextlib.closing(open_store(settings["backup"])) as backup:
        backup.check()
        backup.delete(USER, was.chat_id, was.head)
        backup.save(USER, None, None, other)
    kept = f"{CHAT} - recovered #1"
    for turn in range(2):
        async with running(tmp_path / "data", **settings) as app:
            tab = await TabClient.join(app.urls[0])
            await caught_up(settings["backup"], tab, CHAT)
            assert app._storage.gauges["tellback_stores_diverged"]() == (1.0 if turn == 0 else 0.0)
            assert {one["chat"] for one in (await tab.ask("chat-list"))["chats"]} == {CHAT, kept}
            now = await tab.open(CHAT)
            assert (now["version"], now["messages"]) == (opened["version"], opened["messages"])
            found = await tab.open(kept)
            assert texts(found["messages"]) == ["one", "elsewhere"]
            assert found["metadata"] == {"integrity": found["chat_id"], "note": "n"}
            assert (await tab.ask("state-get", owner={"chat": kept}))["states"]["memory"]["data"] == {"in": "memory"}
            if turn:
                await tab.append(kept, "it goes on")
            await caught_up(settings["backup"], tab, kept)
