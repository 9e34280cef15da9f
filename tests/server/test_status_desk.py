"""How everything stands, as a user may ask it: positions of one moment, and who is slow."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tellback_client import connect
from tests.support.held_fs import HeldFs
from tests.support.server import TabClient, running
from tests.support.slow_tab import SlowTab
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"


async def test_c12_the_three_positions_part_and_meet_again(tmp_path: Path) -> None:
    """[C12]: a write that waits for the disk is counted and told to nobody; the files follow in their own time."""
    fs = HeldFs()
    async with running(tmp_path, fs=fs) as app, connect(app.urls[0]) as client:
        chat = await client.open(CHAT, create=True)
        await chat.append({"mes": "on the disk"})
        fs.hold_syncs()
        waiting = asyncio.create_task(chat.append({"mes": "on its way"}))
        await until(fs.waits.is_set)
        found = await client.server_status()
        [owner] = found.owners
        assert (owner.name, owner.connections) == (CHAT, 1)
        assert owner.sequenced == owner.durable + 1 == 3
        assert owner.durable >= owner.checkpointed
        assert owner.unfolded_ms >= 0 < found.log.waiting_bytes
        assert found.log.waiting_answers == 1
        assert sum(found.log.sync_counts) > 0
        assert len(found.log.sync_counts) == len(found.log.sync_bounds_ms) + 1
        fs.let_go()
        await waiting

        async def folded() -> bool:
            [owner] = (await client.server_status()).owners
            assert owner.sequenced == owner.durable == 3
            return owner.checkpointed == 3

        await until(folded)


async def test_a_tab_that_fell_behind_is_named_first(tmp_path: Path) -> None:
    """[C12]: by its session, with how often; the software is what `hello` said."""
    async with running(tmp_path) as app:
        writer = await TabClient.join(app.urls[0])
        await writer.open(CHAT, create=True)
        slow = await SlowTab.join(app.urls[0])
        slow.send({"type": "open", "id": 1, "chat": CHAT, "since": None})
        assert (await slow.read())["type"] == "opened"
        async with connect(app.urls[0]) as watcher:
            while not app.counters.behind:
                await writer.append(CHAT, "x" * 500_000)
            found = await watcher.server_status(2)
        assert (found.connections_total, found.owners_total) == (3, 1)
        first, second = found.connections
        assert (first.session, first.behind, first.open) == (slow.session, 1, 0)
        assert (second.behind, second.client.partition(" ")[0]) == (0, "tellback-python")
