"""What is not done in the way of a request, because it costs the history and not the change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tellback_protocol.floors import FloorLog
from tests.support.server import TabClient, running

CHAT = "character:Alice/Costs"


async def test_no_request_but_that_for_it_writes_the_log_of_a_floor_state_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[G14]: a log of ten thousand commits takes ten milliseconds of the loop, for everybody's next answer."""
    written: list[str] = []
    document = FloorLog.document

    def counted(log: FloorLog, chat: object) -> bytes:
        written.append("")
        return document(log, chat)  # type: ignore[arg-type]

    monkeypatch.setattr(FloorLog, "document", counted)
    async with running(tmp_path, checkpoint_interval_s=3600) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        last = await tab.append(CHAT, "one")
        update = {"namespace": "score", "patch": [{"op": "add", "path": "/n", "value": 1}]}
        floor = await tab.write("floor-update", CHAT, base=None, **update)
        assert floor["type"] == "ack"
        written.clear()
        again = await tab.write("floor-update", CHAT, base=floor["version"]["integrity"], **update)
        assert again["type"] == "ack"
        state = await tab.write_state("state-update", CHAT, namespace="memory", base=None, set={"a": 1})
        assert state["type"] == "ack"
        swipe = {"message": last["messages"][0], "action": "add", "content": {"mes": "or so"}}
        swiped = await tab.write("swipe", CHAT, base=last["version"]["integrity"], **swipe)
        assert swiped["type"] == "ack"
        gone = await tab.write("delete", CHAT, base=swiped["version"]["integrity"], messages=last["messages"])
        assert gone["type"] == "ack"
        assert (await tab.open(CHAT))["type"] == "opened"
        states = await tab.ask("state-get", owner={"chat": CHAT}, namespaces=["memory", "score", "other"])
        assert states["states"]["score"]["data"] is not None
        assert written == []
        await tab.ask("state-get", owner={"chat": CHAT}, namespaces=["score__floor_log"])
        assert written, "who asks for it gets it"
