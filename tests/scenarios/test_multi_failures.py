"""A primary that flaps, backups that are away, kills at every step of a flush: acks go on, nothing is lost or doubled,
the order is kept, and in the end both stores are equal, by integrity and content.

PostgreSQL and Valkey are real processes. The number of flaps is TELLBACK_FLAPS (4).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.database_servers import PostgresProcess, ValkeyProcess
from tests.support.flapping import Cutter
from tests.support.forked_server import ForkedServer
from tests.support.oracle import Notes
from tests.support.server import TabClient
from tests.support.stored import caught_up, sqlite_url, stored
from tests.support.under_writers import disturbed, goes_on
from tests.support.waiting import until

FLAPS = int(os.environ.get("TELLBACK_FLAPS", "4"))
FLAP_S = 0.2
CHAT = "character:Alice/First meeting"
FAST = {"checkpoint_interval_s": 0.05, "checkpoint_debounce_s": 0.02, "flush_interval_s": 0.05}


@contextlib.asynccontextmanager
async def served(tmp_path: Path, primary: str, backup: str, **settings: Any) -> AsyncIterator[ForkedServer]:
    """A server on two stores; it ends well and without a traceback."""
    values = {"store": "multi", "primary": primary, "backup": backup, **FAST, **settings}
    async with ForkedServer(tmp_path / "data", **values) as server:
        yield server
        assert await server.stop() == 0
    assert "Traceback" not in server.errors.read_text()


@pytest.mark.timeout(180)
async def test_a_primary_whose_wire_is_cut_every_200_ms(postgres: PostgresProcess, tmp_path: Path) -> None:
    """[SM3] [SM4]: PostgreSQL behind a wire that is cut and joined again, under load; once kill -9 of the server."""
    backup = sqlite_url(tmp_path / "backup")
    async with Cutter(postgres.port) as wire:
        url = postgres.url("cut").replace(f":{postgres.port}/", f":{wire.port}/")
        async with served(tmp_path, url, backup) as server:

            async def disturb(notes: Notes) -> None:
                for round_ in range(FLAPS):
                    await wire.cut()
                    if round_ == 1:
                        await server.kill()
                        await server.start()
                    await asyncio.sleep(FLAP_S)
                    await goes_on(notes, 5)
                    await wire.join()
                    await asyncio.sleep(FLAP_S)

            await disturbed(server, CHAT, [postgres.url("cut"), backup], disturb)
        assert wire.cuts >= FLAPS


@pytest.mark.timeout(180)
async def test_a_primary_that_is_stopped_every_200_ms(
    valkey: ValkeyProcess, postgres: PostgresProcess, tmp_path: Path
) -> None:
    """[SM3] [SM4]: SIGSTOP and SIGCONT of Valkey under load, PostgreSQL as the backup."""
    primary, backup = valkey.url(5, "?timeout_s=1"), postgres.url("stopped")
    async with served(tmp_path, primary, backup) as server:

        async def disturb(notes: Notes) -> None:
            for _ in range(FLAPS):
                os.kill(valkey.pid, signal.SIGSTOP)
                await asyncio.sleep(FLAP_S)
                await goes_on(notes, 5)
                os.kill(valkey.pid, signal.SIGCONT)
                await asyncio.sleep(FLAP_S)

        try:
            await disturbed(server, CHAT, [primary, backup], disturb)
        finally:
            os.kill(valkey.pid, signal.SIGCONT)


@pytest.mark.timeout(180)
async def test_a_primary_that_is_killed_and_started_again(tmp_path: Path) -> None:
    """[SM3] [SM4]: kill -9 of the primary; the second time it comes back empty and is filled from the backup."""
    backup = sqlite_url(tmp_path / "backup")
    with ValkeyProcess() as database:
        async with served(tmp_path, database.url(0), backup) as server:

            async def disturb(notes: Notes) -> None:
                for round_ in range(2):
                    await goes_on(notes)
                    await asyncio.to_thread(database.kill)
                    await goes_on(notes)
                    if round_:
                        for path in database.folder.rglob("*"):
                            if path.is_file():
                                path.unlink()
                    await asyncio.to_thread(database.start)
                    await goes_on(notes)

            await disturbed(server, CHAT, [database.url(0), backup], disturb)


@pytest.mark.timeout(180)
async def test_a_backup_that_is_away_for_long_and_both_away(tmp_path: Path) -> None:
    """[SM4] [SM6]: acks go on without the backup, and without both; each gets everything in order."""
    with ValkeyProcess() as database, ValkeyProcess() as other:
        async with served(tmp_path, database.url(0), other.url(0)) as server:

            async def disturb(notes: Notes) -> None:
                await goes_on(notes)
                await asyncio.to_thread(other.kill)
                await goes_on(notes, 200)
                await asyncio.to_thread(database.kill)
                await goes_on(notes, 100)
                await asyncio.to_thread(other.start)
                await goes_on(notes)
                await asyncio.to_thread(database.start)
                await goes_on(notes)

            await disturbed(server, CHAT, [database.url(0), other.url(0)], disturb)


@pytest.mark.parametrize(
    "step", ["flush.before_save", "flush.after_save", "flush.before_position", "flush.after_position"]
)
async def test_kill_9_at_each_step_of_a_flush(step: str, tmp_path: Path) -> None:
    """[SM4]: nothing is missing in the backup and nothing twice, whatever of a flush was done."""
    primary, backup = sqlite_url(tmp_path / "primary"), sqlite_url(tmp_path / "backup")
    async with served(tmp_path, primary, backup) as server:
        tab = await TabClient.join(server.url)
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one", "two")
        await caught_up(backup, tab, CHAT)
        await server.stop()
        server.settings["failpoints"] = f"{step}=kill@1"
        await server.start()
        server.settings["failpoints"] = ""
        tab = await TabClient.join(server.url)
        await tab.open(CHAT)
        with contextlib.suppress(Exception):
            for number in range(50):
                await tab.append(CHAT, f"more {number}")
                await asyncio.sleep(0.02)
        assert await server.ended() == -signal.SIGKILL
        await server.start()
        tab = await TabClient.join(server.url)
        await tab.open(CHAT)
        await tab.append(CHAT, "after it")
        one, other = await caught_up(backup, tab, CHAT), await caught_up(primary, tab, CHAT)
        assert list(one.messages.items()) == list(other.messages.items())
    assert server.starts == 3


@pytest.mark.parametrize("step", ["flush.before_delete", "flush.after_delete", "flush.before_save"])
async def test_kill_9_between_a_deletion_and_the_backup(step: str, tmp_path: Path) -> None:
    """[SM5]: the deletion reaches the backup out of the log, and nothing that was pending comes back."""
    primary, backup = sqlite_url(tmp_path / "primary"), sqlite_url(tmp_path / "backup")
    async with served(tmp_path, primary, backup, flush_interval_s=0.15) as server:
        tab = await TabClient.join(server.url)
        chat_id = (await tab.open(CHAT, create=True))["chat_id"]
        await tab.append(CHAT, "one")
        await caught_up(backup, tab, CHAT)
        await server.stop()
        server.settings["failpoints"] = f"{step}=kill@1"
        await server.start()
        server.settings["failpoints"] = ""
        tab = await TabClient.join(server.url)
        opened = await tab.open(CHAT)
        with contextlib.suppress(Exception):
            await tab.append(CHAT, "pending")
            await asyncio.sleep(0.4 if step == "flush.before_save" else 0)
            opened = await tab.open(CHAT)
            await tab.write("chat-delete", CHAT, base=opened["version"]["integrity"])
        assert await server.ended() == -signal.SIGKILL
        await server.start()
        tab = await TabClient.join(server.url)
        again = await tab.ask("open", chat=CHAT, since=None)
        if again["type"] == "opened":
            # It was killed before it was deleted.
            assert (await tab.write("chat-delete", CHAT, base=again["version"]["integrity"]))["type"] == "ack"
        await until(lambda: stored(backup, chat_id) is None)
        await asyncio.sleep(0.4)
        assert await asyncio.to_thread(stored, backup, chat_id) is None
        assert await asyncio.to_thread(stored, primary, chat_id) is None
