"""A backup of a whole server on a store, and a server made of it elsewhere, on a store of another kind."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from tellback_server.clock import Clock
from tellback_server.commands.store_option import opened
from tellback_server.config import ConfigurationError
from tellback_server.fs import Fs
from tellback_server.server_backup import Manifest, restore
from tellback_server.store_backup import fill_store, settle_filling
from tests.scenarios.test_server_backup import CHATS, Load, command, refused
from tests.support.database_servers import PostgresProcess, ValkeyProcess
from tests.support.recording_fs import RecordingFs, SyncedDirectory, Unlinked
from tests.support.server import Process, TabClient, running
from tests.support.stored import caught_up, sqlite_url
from tests.support.waiting import until

GONE = "character:アリス/gone"


@pytest.fixture
def postgres_url(postgres: PostgresProcess) -> str:
    return postgres.url(f"t{uuid.uuid4().hex}")


@pytest.fixture
def valkey_url(valkey: ValkeyProcess) -> str:
    return valkey.url(0, f"?prefix={uuid.uuid4().hex}")


async def everything(tab: TabClient) -> dict[str, Any]:
    """Every chat with its versions, document and states, and what is in the trash."""
    found: dict[str, Any] = {}
    for listed in (await tab.ask("chat-list", limit=1000))["chats"]:
        opened = await tab.open(listed["chat"])
        states = (await tab.ask("state-get", owner={"chat": listed["chat"]}))["states"]
        told = {key: opened[key] for key in ("chat_id", "version", "head", "messages", "metadata")}
        found[listed["chat"]] = {**told, "states": states}
    trash = (await tab.ask("trash-list"))["entries"]
    return {"chats": found, "trash": sorted(one["entry"] for one in trash)}


async def test_under_load_it_is_one_moment_of_store_and_log_z13_z14(
    postgres_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """[Z13] [Z14]: taken of PostgreSQL while writers go on, restored into Valkey, and from a copy of that into SQLite:
    every chat is at a version that was there, nothing acknowledged before is missing, and the copies are equal.
    """
    data, dest = tmp_path / "data", tmp_path / "dest"
    environment = {"TELLBACK_STORE": postgres_url}
    async with Process(data, "--checkpoint-interval", "0.05", "--idle", "0.3", environment=environment) as server:
        load = Load()
        tab = await TabClient.join(server.url)
        for chat in [*CHATS, GONE]:
            await tab.open(chat, create=True)
        await tab.append(GONE, "into the trash")
        assert (await tab.write("chat-delete", GONE, base=(await tab.open(GONE))["version"]["integrity"]))[
            "type"] == "ack"
        writers = [asyncio.create_task(load.write(server.url, chat, kind)) for chat in CHATS for kind in range(3)]
        await until(lambda: min(load.acked.values()) > 5)
        before = dict(load.acked)
        code, out, errors = await command("backup", "server", dest, "--data", data, "--store", postgres_url, "--json")
        assert code == 0, errors
        assert json.loads(out)["position"] > 0
        count = load.count
        await until(lambda: load.count > count)
        load.stop.set()
        await asyncio.gather(*writers)

        other = tmp_path / "other"
        code, _out, errors = await command("backup", "server-restore", dest, "--data", other, "--store", valkey_url)
        assert code == 0, errors
        async with running(other, store=valkey_url) as copy:
            there = await TabClient.join(copy.urls[0])
            found = await everything(there)
            assert (len(found["chats"]), len(found["trash"])) == (len(CHATS), 1)
            for chat in CHATS:
                head = found["chats"][chat]["head"]
                assert before[chat] <= head["seq"] <= load.acked[chat], chat
                page = await tab.ask("history", chat=chat, after=head["seq"] - 1, limit=1)
                assert page["commits"][0]["version"] == head
                await caught_up(valkey_url, there, chat)
    # Of a server that is down, too; the store is still there.
    second, third = tmp_path / "second", tmp_path / "third"
    code, _out, errors = await command("backup", "server", second, "--data", other, "--store", valkey_url)
    assert code == 0, errors
    url = sqlite_url(tmp_path / "third-store")
    code, _out, errors = await command("backup", "server-restore", second, "--data", third, "--store", url)
    assert code == 0, errors
    async with running(third, store=url) as copy:
        there = await TabClient.join(copy.urls[0])
        assert await everything(there) == found
        answer = await there.write("chat-restore", f"id:{found['trash'][0].partition('-')[2]}")
        assert answer["type"] == "ack", answer
        assert (await there.append(CHATS[0], "it goes on"))["type"] == "ack"


async def test_what_cannot_be_and_what_is_cut_off_z14(tmp_path: Path) -> None:
    """[Z14]: a copy is served by nobody, a store that holds chats is left alone, and a restore goes on."""
    data, dest, back, url = tmp_path / "data", tmp_path / "dest", tmp_path / "back", sqlite_url(tmp_path / "store")
    async with running(data, store=url) as server:
        tab = await TabClient.join(server.urls[0])
        for number in range(5):
            await tab.open(f"{CHATS[0]} {number}", create=True)
            await tab.append(f"{CHATS[0]} {number}", "one")
        was = await everything(tab)
    for store in (f"{url}x", "sqlite:///nowhere/at/all.db"):
        code, _out, errors = await command("backup", "server", dest, "--data", data, "--store", store)
        assert (code, "are in sqlite" in errors) == (78, True), errors
    code, _out, errors = await command("backup", "server", dest, "--data", data)
    assert code == 0, errors
    assert "server-restore" in await refused(dest)
    code, _out, errors = await command("backup", "server-restore", dest, "--data", back)
    assert (code, "with --store" in errors) == (78, True)
    code, _out, errors = await command("backup", "server-restore", dest, "--data", back, "--store", url)
    assert (code, "holds chats already" in errors) == (78, True), errors
    assert "the copy is not finished" in await refused(back)

    owners = sorted((dest / ".tellback/owners").rglob("*-*"))
    whole = owners[3].read_bytes()
    owners[3].write_bytes(whole[:-1] + b"!")
    new = sqlite_url(tmp_path / "new")
    code, _out, errors = await command("backup", "server-restore", dest, "--data", back, "--store", new)
    assert (code, "is not what was written" in errors) == (78, True)
    owners[3].write_bytes(whole)
    code, _out, errors = await command("backup", "server-restore", dest, "--data", back, "--store", f"{new}2")
    assert (code, "what was cut off went into" in errors) == (78, True)
    code, _out, errors = await command("backup", "server-restore", dest, "--data", back, "--store", new)
    assert code == 0, errors
    async with running(back, store=new) as server:
        tab = await TabClient.join(server.urls[0])
        assert await everything(tab) == was
    assert "the chats of" in await refused(back)
    with pytest.raises(ConfigurationError, match="another data folder"):
        await running(back, store=url).__aenter__()


class _Cut(Exception):
    """Where a kill comes."""


async def test_a_restore_that_was_cut_off_when_the_store_was_full_goes_on_z14(tmp_path: Path) -> None:
    """[Z14]: between the last owner and the end of the folder; the mark of the filling goes behind that of the folder,
    each durably, so that there is no moment from which it does not go on.
    """
    data, dest, back, url = tmp_path / "data", tmp_path / "dest", tmp_path / "back", sqlite_url(tmp_path / "store")
    async with running(data, store=url) as server:
        tab = await TabClient.join(server.urls[0])
        await tab.open(CHATS[0], create=True)
        await tab.append(CHATS[0], "one")
        was = await everything(tab)
    code, _out, errors = await command("backup", "server", dest, "--data", data)
    assert code == 0, errors
    new, fs = sqlite_url(tmp_path / "new"), RecordingFs(Fs())

    def restored(step: str) -> None:
        with opened(new) as store:
            def fill(manifest: Manifest) -> None:
                fill_store(
                    fs, str(dest), str(back), manifest, new, store, lambda _path, _size: None, Clock().uuid4
                )
                if step == "filled":
                    raise _Cut
            restore(fs, str(dest), str(back), fill=fill)
        settle_filling(fs, str(back))

    with pytest.raises(_Cut):
        restored("filled")
    restored("")
    own = str(back / ".tellback")
    tail = [call for call in fs.trace if isinstance(call, Unlinked | SyncedDirectory) and call.path.startswith(own)]
    assert tail[-4:] == [
        Unlinked(f"{own}/UNFINISHED"), SyncedDirectory(own), Unlinked(f"{own}/filling"), SyncedDirectory(own),
    ]
    async with running(back, store=new) as server:
        assert await everything(await TabClient.join(server.urls[0])) == was
