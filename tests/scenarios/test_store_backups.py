"""Backups of chats in a store: the same promises as for files, with the files of a backup in the data folder."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.test_backups import CHAT, QUIET, backups_of, begun, folded, restored_setup
from tests.support.database_servers import PostgresProcess, ValkeyProcess
from tests.support.server import TabClient, running, texts
from tests.support.stored import caught_up, sqlite_url
from tests.support.waiting import until


def kept_files(data: Path, chat_id: str, backup: str) -> dict[str, bytes]:
    """The files of a backup by how they stand beside a chat."""
    folder = data / "default-user/backups/tellback" / chat_id
    manifest = json.loads((folder / f"{backup}.json").read_text())
    return {ending: (folder / one["file"]).read_bytes() for ending, one in manifest["files"].items()}


@pytest.fixture(params=["sqlite", "postgresql", "redis", "memory"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    match request.param:
        case "postgresql":
            postgres: PostgresProcess = request.getfixturevalue("postgres")
            return postgres.url(f"t{uuid.uuid4().hex}")
        case "redis":
            valkey: ValkeyProcess = request.getfixturevalue("valkey")
            return valkey.url(0, f"?prefix={uuid.uuid4().hex}")
        case "memory":
            return f"memory:{uuid.uuid4().hex}"
    return sqlite_url(tmp_path_factory.mktemp("store"))


async def test_a_restore_is_byte_exact_and_a_new_epoch_z7(url: str, tmp_path: Path) -> None:
    """[Z1] [Z7] [Z9]: on every store, and after a restart; out of the trash, and beside the chat."""
    async with running(tmp_path, **QUIET, store=url) as app:
        tab, other, backup, _no_files, was = await restored_setup(app, tmp_path)
        opened = await tab.open(CHAT)
        chat_id = opened["chat_id"]
        before = kept_files(tmp_path, chat_id, backup)
        ack = await tab.write("backup-restore", CHAT, base=opened["version"]["integrity"], backup=backup)

        assert ack["type"] == "ack", ack
        version = ack["restored"]["version"]
        assert (version["epoch"], version["seq"]) == (2, opened["head"]["seq"] + 1)
        for one in (tab, other):
            reset = await one.raw.receive_until(type="reset")
            assert (reset["reason"], reset["version"]) == ("restored", version)
        await same_as_before(tab, was, version)
        again = await tab.ask("backup-create", chat=CHAT)
        assert kept_files(tmp_path, chat_id, again["backup"]["backup"]) == before
        listed = (await tab.ask("backup-list", chat=CHAT))["backups"]
        assert [one["reason"] for one in listed] == ["demand", "restore", "demand"]
        got = await tab.ask("backup-get", chat=CHAT, backup=listed[1]["backup"])
        assert texts(got["messages"]) == ["two", "three"]
        assert (await other.write("append", CHAT, base=opened["version"]["integrity"], messages=[{"mes": "late"}]))[
            "type"] == "conflict"
        session, op = tab.session, tab.ops[CHAT]
    async with running(tmp_path, **QUIET, store=url) as app:
        tab = await TabClient.join(app.urls[0], session)
        await same_as_before(tab, was, version)
        resent = await tab.ask("backup-restore", chat=CHAT, op=op, base=opened["version"]["integrity"], backup=backup)
        assert (resent.get("duplicate"), resent["restored"]) == (True, ack["restored"])
        beside = (await tab.write("backup-restore", CHAT, backup=backup, to="as it was"))["branch"]
        made = await tab.open(beside["chat"])
        assert (made["chat_id"], made["version"], made["messages"]) == (
            beside["chat_id"], beside["version"], was["messages"],
        )
        for to, code in (("as it was", "exists"), ("a/b", "name-illegal")):
            assert (await tab.write("backup-restore", CHAT, backup=backup, to=to))["code"] == code
        deleted = await tab.write("chat-delete", CHAT, base=(await tab.open(CHAT))["version"]["integrity"])
        assert deleted["type"] == "ack", deleted
        address = f"id:{chat_id}"
        assert (await tab.ask("backup-create", chat=address))["code"] == "deleted"
        tab.ops[address] = tab.ops[CHAT]
        ack = await tab.write("backup-restore", address, backup=backup, to="別の名前")
        assert ack["type"] == "ack", ack
        opened = await tab.open("character:アリス/別の名前")
        assert (opened["chat_id"], opened["version"], opened["messages"]) == (
            chat_id, ack["restored"]["version"], was["messages"],
        )
        assert (await tab.ask("open", chat=CHAT, since=None))["code"] == "renamed"
        assert (await tab.append(address, "on"))["type"] == "ack"
    assert files_of_nobody(tmp_path) == []


async def same_as_before(tab: TabClient, was: dict[str, Any], version: dict[str, Any]) -> None:
    now = await tab.open(CHAT)
    assert (now["version"], now["head"]) == (version, version)
    assert (now["messages"], now["metadata"]) == (was["messages"], was["metadata"])
    states = (await tab.ask("state-get", owner={"chat": CHAT}, namespaces=["memory", "score", "later"]))["states"]
    assert states == {
        "memory": {"version": version, "data": {"n": 1}}, "score": {"version": version, "data": {"points": 1}},
        "later": None,
    }


def files_of_nobody(data: Path) -> list[Path]:
    """Chats as files where a server on a store keeps none."""
    return list((data / "default-user/chats").rglob("*")) if (data / "default-user/chats").exists() else []


async def test_before_a_loss_by_itself_and_when_it_leaves_memory_z2_z3(tmp_path: Path) -> None:
    """[Z2] [Z3] [Z4]: as for files; the store need not hold what is backed up."""
    store = sqlite_url(tmp_path / "store")
    data = tmp_path / "data"
    async with running(data, **QUIET, store=store, backup_deletions_min=3, checkpoint_interval_s=600) as app:
        tab = await begun(app.urls[0], *(f"{number}" for number in range(5)))
        opened = await tab.open(CHAT)
        ids = [message["id"] for message in opened["messages"]]
        ack = await tab.write("delete", CHAT, base=opened["version"]["integrity"], messages=ids[:3])
        [[manifest]] = backups_of(data).values()
        assert (manifest["reason"], manifest["head"]["seq"]) == ("deletion", ack["version"]["seq"] - 1)
        assert texts((await tab.ask("backup-get", chat=CHAT))["messages"]) == list("01234")
        replace = [{"op": "replace", "path": "/mes", "value": "forced"}]
        await tab.write("patch", CHAT, base=opened["version"]["integrity"], message=ids[4], patch=replace, force=True)
        [[_first, manifest]] = backups_of(data).values()
        assert manifest["reason"] == "force"
    async with running(data, store=store, backup_interval_s=600, idle_s=0.1) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.append(CHAT, "six")
        for _turn in range(2):
            await tab.open(CHAT)
            await tab.ask("close", chat=CHAT)
            await until(lambda: app._hub.actors == [])
            [[*_earlier, idle]] = backups_of(data).values()
            assert (idle["reason"], len(_earlier)) == ("idle", 2)
    async with running(data, store=store, backup_interval_s=0.3) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.append(CHAT, "seven")
        await until(lambda: any(found[-1]["reason"] == "schedule" for found in backups_of(data).values()))


async def test_a_store_that_is_away_is_in_no_backups_way_z2(tmp_path: Path) -> None:
    """[Z1] [SV3]: what is live is backed up, and so it is right before a restore, which waits for the store."""
    store = tmp_path / "store"
    url = sqlite_url(store) + "?busy_timeout_ms=50"
    settings = {**QUIET, "store": url, "checkpoint_debounce_s": 0.01}
    async with running(tmp_path / "data", **settings) as app:
        tab = await begun(app.urls[0], "one", "two")
        backup = (await tab.ask("backup-create", chat=CHAT))["backup"]["backup"]
        await folded(app)
        with sqlite3.connect(next(store.glob("*.db"))) as locked:
            locked.execute("BEGIN IMMEDIATE")
            await tab.append(CHAT, "three")
            created = await tab.ask("backup-create", chat=CHAT, timeout_s=45)
            assert created["is_new"], created
            assert texts((await tab.ask("backup-get", chat=CHAT))["messages"]) == ["one", "two", "three"]
            op = tab.ops[CHAT] + 1
            asked = asyncio.create_task(tab.ask(
                "backup-restore", chat=CHAT, op=op, base="*", backup=backup, timeout_s=45
            ))
            await until(lambda: app._keeper.lifecycle._begun)
            locked.rollback()
        answer = await asked
        if answer["type"] != "ack":
            # It was told that it takes longer; it is done all the same.
            assert answer["code"] == "storage-failed"
            answer = await tab.ask("backup-restore", chat=CHAT, op=op, base="*", backup=backup)
        assert answer["type"] == "ack", answer
        assert texts((await tab.open(CHAT))["messages"]) == ["one", "two"]
        assert (await caught_up(url, tab, CHAT)).head.epoch == 2
