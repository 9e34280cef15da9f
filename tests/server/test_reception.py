"""Who is there: heartbeats, sessions, and who goes when."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.raw_client import RawClient
from tests.support.server import TabClient, new_session, running
from tests.support.slow_tab import SlowTab
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"


async def test_C10_a_peer_that_stays_silent_is_cut_off_and_one_that_pongs_stays(tmp_path: Path) -> None:
    """[C7]: a dead connection is noticed within two heartbeats; a live one is only asked."""
    async with running(tmp_path, heartbeat_ms=100) as app:
        alive = await TabClient.join(app.urls[0])
        dead = await SlowTab.join(app.urls[0])
        dead.send({"type": "open", "id": 1, "chat": CHAT, "create": True, "since": None})
        assert (await dead.read())["type"] == "opened"
        assert len(app._reception.tabs) == 2
        await until(lambda: len(app._reception.tabs) == 1)
        with pytest.raises(EOFError):
            await dead.read()
        assert 1 <= dead.pings <= 2
        # The library of the other one answers pings by itself.
        assert (await alive.ask("ping"))["type"] == "pong"
        [actor] = app._hub.actors
        assert actor.audience.subscriptions == {}


async def test_app_pings_count_as_life(tmp_path: Path) -> None:
    """[C7]: any frame does."""
    async with running(tmp_path, heartbeat_ms=100) as app:
        tab = await SlowTab.join(app.urls[0])
        for number in range(12):
            tab.send({"type": "ping", "id": number})
            assert (await tab.read())["id"] == number
            await asyncio.sleep(0.03)


async def test_connections_are_counted_out_as_they_were_counted_in(tmp_path: Path) -> None:
    """[C6]: of a session only the last hello is remembered, and only by its own end forgotten."""
    async with running(tmp_path) as app:
        session = new_session()
        reception = app._reception
        first = await RawClient.connect(app.urls[0])
        await until(lambda: len(reception.tabs) == 1)
        assert reception._sessions == {}
        await first.send({"type": "hello", "protocol": 1, "session": session, "token": None})
        await first.receive()
        second = await TabClient.join(app.urls[0], session)
        assert await first.wait_closed() == 4501
        await until(lambda: len(reception.tabs) == 1)
        [(key, tab)] = reception._sessions.items()
        assert key == ("default-user", session)
        assert [tab] == list(reception.tabs)
        await second.close()
        await until(lambda: not reception.tabs)
        assert reception._sessions == {}


async def test_welcome_names_the_model_servers_and_nothing_else_of_them(tmp_path: Path) -> None:
    """[U10] Also the answer to a fresh token does; without any the field is left out."""
    secret = "http://127.0.0.1:9/hidden/v1"
    async with running(tmp_path / "one", upstream=[f"local={secret}", f"big={secret}"]) as app:
        raw = await RawClient.connect(app.urls[0])
        await raw.send({"type": "hello", "protocol": 1, "session": new_session(), "token": None})
        welcome = await raw.receive()
        assert welcome["upstreams"] == [{"name": "local"}, {"name": "big"}]
        assert "hidden" not in str(welcome)
        await raw.send({"type": "auth", "id": 3, "token": ""})
        again = await raw.receive()
        assert (again["id"], again["upstreams"]) == (3, welcome["upstreams"])
        await raw.close()
    async with running(tmp_path / "none") as app:
        raw = await RawClient.connect(app.urls[0])
        await raw.send({"type": "hello", "protocol": 1, "session": new_session(), "token": None})
        assert "upstreams" not in await raw.receive()
        await raw.close()
