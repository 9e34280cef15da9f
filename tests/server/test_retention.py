"""Retention and what must not be let go of: records that nobody has decided about."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tellback_server.app import App
from tellback_server.store.files import DEFAULT_USER
from tests.server.test_contradictions import CHAT, QUIET, ahead
from tests.server.test_outcomes_kept import SMALL_LOG, folded, let_go, many
from tests.support.damage import repaired
from tests.support.server import TabClient, running
from tests.support.waiting import until


async def used(app: App) -> None:
    """Another chat writes more than the log is to retain."""
    await many(await TabClient.join(app.urls[0]), "group:another", 60, 3000)
    await folded(app)


@pytest.mark.parametrize("where", ["in its place", "in the trash"])
async def test_retention_decides_nothing(tmp_path: Path, where: str) -> None:
    """[X13] STORAGE [R4]: records that contradict a chat's files stay, whether somebody has it open, nobody, or it went
    with its character; without them chat_sync would count, and the epoch that was shown would go back.
    """
    desk, data = await ahead(tmp_path)
    card, owner = desk.path.parents[2] / "characters" / "Pip.png", {"character": "Pip"}
    card.parent.mkdir()
    card.write_bytes(b"a picture")
    async with running(data, idle_s=0.05, **SMALL_LOG) as app:
        tab = await TabClient.join(app.urls[0])
        shown = await tab.open(CHAT)
        key = f"{DEFAULT_USER}/{shown['chat_id']}"

        async def stays() -> None:
            with capture_logs() as logs:
                await app._keeper._collect()
            [line] = [line for line in logs if line["event"] == "log-segments-held"]
            assert line["examples"] == {key: "its files and the log contradict each other"}

        await used(app)
        await stays()
        if where == "in the trash":
            answer = await tab.ask("owner-delete", owner=owner, op=1, base="*", chats=True, force=True)
            assert answer["type"] == "ack", answer
        tab.raw.abort()
        await until(lambda: all(actor.key != key for actor in app._hub.actors))
        await stays()
        await stays()
        if where == "in the trash":
            answer = await (await TabClient.join(app.urls[0], tab.session)).ask("owner-restore", owner=owner, op=2)
            assert answer["type"] == "ack", answer
    async with running(data, **QUIET) as app:
        opened = await (await TabClient.join(app.urls[0])).open(CHAT)
        assert (opened["read_only"], opened["version"]) == (True, shown["version"])
    repaired(data)
    async with running(data, **SMALL_LOG) as app:
        await used(app)
        await let_go(app)
    async with running(data, **QUIET) as app:
        opened = await (await TabClient.join(app.urls[0])).open(CHAT)
        assert ("read_only" in opened, opened["version"]) == (False, shown["version"])
