"""A raw client written from DESIGN section 5 alone, against the whole server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.raw_client import RawClient
from tests.support.server import TabClient, new_session, running, texts

CHAT = "character:Alice/First meeting"


async def test_the_core_frames_of_design_section_5_in_their_order(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        raw = await RawClient.connect(app.urls[0])
        await raw.send({"type": "hello", "protocol": 1, "session": new_session(), "token": None})
        welcome = await raw.receive()
        assert welcome["type"] == "welcome"
        assert welcome["protocol"] == 1
        assert welcome["user"] == "default-user"
        assert welcome["heartbeat_ms"] == 25000
        assert isinstance(welcome["limits"], dict)

        await raw.send({"type": "open", "id": 1, "chat": CHAT, "create": True, "since": None})
        opened = await raw.receive()
        assert opened["type"] == "opened"
        assert opened["id"] == 1
        assert opened["mode"] == "snapshot"
        assert opened["next_op"] == 1
        assert opened["count"] == 0
        assert opened["messages"] == []
        assert opened["metadata"] == {}
        assert opened["generations"] == []
        assert set(opened["version"]) == {"epoch", "seq", "integrity"}
        assert opened["version"] == opened["head"]

        other = await TabClient.join(app.urls[0])
        await other.open(CHAT)

        base = opened["version"]["integrity"]
        await raw.send({
            "type": "append", "id": 2, "chat": CHAT, "op": 1, "base": base,
            "messages": [{"name": "User", "is_user": True, "mes": "hi"}],
        })
        ack = await raw.receive()
        assert ack["type"] == "ack"
        assert (ack["id"], ack["op"], ack["chat"], ack["durable"]) == (2, 1, CHAT, "fsync")
        assert len(ack["messages"]) == 1
        integrity = await other.raw.receive_until(type="integrity")
        assert integrity["chat"] == CHAT
        assert integrity["version"] == ack["version"]
        assert integrity["previous"] == base
        assert integrity["by"]["op"] == 1
        message = {"id": ack["messages"][0], "name": "User", "is_user": True, "mes": "hi"}
        assert integrity["ops"] == [{"op": "append", "messages": [message]}]

        await raw.send({
            "type": "patch", "id": 3, "chat": CHAT, "op": 2, "base": ack["version"]["integrity"],
            "message": ack["messages"][0], "patch": [{"op": "replace", "path": "/mes", "value": "hello"}],
        })
        patched = await raw.receive()
        assert patched["type"] == "ack"
        edit = await other.raw.receive_until(type="integrity")
        assert edit["ops"] == [{
            "op": "patch", "message": ack["messages"][0],
            "patch": [{"op": "replace", "path": "/mes", "value": "hello"}],
        }]

        await raw.send({
            "type": "patch", "id": 4, "chat": CHAT, "op": 3, "base": base,
            "message": ack["messages"][0], "patch": [{"op": "replace", "path": "/mes", "value": "late"}],
        })
        conflict = await raw.receive()
        assert conflict["type"] == "conflict"
        assert conflict["version"] == patched["version"]
        assert [missed["version"]["seq"] for missed in conflict["missed"]] == [2, 3]
        assert conflict["missed"][0]["type"] == "integrity"

        await raw.send({"type": "append", "id": 5, "chat": CHAT, "op": 4, "messages": [{"mes": "no base"}]})
        error = await raw.receive()
        assert error["type"] == "error"
        assert (error["id"], error["code"], error["retry"], error["op"], error["pointer"]) == (
            5, "base-required", "never", 4, "/base"
        )

        owner = {"chat": CHAT}
        await raw.send({"type": "state-get", "id": 6, "owner": owner, "namespaces": ["memory"]})
        assert await raw.receive() == {"type": "state", "id": 6, "owner": owner, "states": {"memory": None}}
        await raw.send({
            "type": "state-update", "id": 7, "owner": owner, "op": 5, "namespace": "memory", "base": None,
            "set": {"mood": "calm"},
        })
        state_ack = await raw.receive()
        assert state_ack["type"] == "ack"
        assert (state_ack["namespace"], state_ack["owner"], state_ack["durable"]) == ("memory", owner, "fsync")
        told = await other.raw.receive_until(type="integrity")
        assert told["chat"] == CHAT
        assert told["ops"][0]["op"] == "state"
        assert told["ops"][0]["data"] == {"mood": "calm"}
        await raw.send({"type": "state-get", "id": 8, "owner": owner, "namespaces": ["memory"]})
        states = (await raw.receive())["states"]
        assert states == {"memory": {"version": state_ack["version"], "data": {"mood": "calm"}}}

        # A state write does not make a chat append stale.
        await raw.send({
            "type": "append", "id": 9, "chat": CHAT, "op": 6, "base": patched["version"]["integrity"],
            "messages": [{"mes": "still fine"}],
        })
        assert (await raw.receive())["type"] == "ack"
        await raw.send({"type": "ping", "id": 10})
        assert await raw.receive() == {"type": "pong", "id": 10}
        await raw.send({"type": "close", "id": 11, "chat": CHAT})
        assert await raw.receive() == {"type": "closed", "chat": CHAT, "id": 11}
        await raw.close()
        await other.close()


async def test_a_tab_that_comes_back_hears_what_it_missed_or_that_nothing_was_missed(tmp_path: Path) -> None:
    """R1: since is answered with replay, current or a snapshot that says why."""
    async with running(tmp_path) as app:
        writer = await TabClient.join(app.urls[0])
        opened = await writer.open(CHAT, create=True)
        first = await writer.append(CHAT, "one")
        last = await writer.append(CHAT, "two", "three")

        late = await TabClient.join(app.urls[0])
        replay = await late.open(CHAT, since=first["version"])
        assert replay["mode"] == "replay"
        frame = await late.raw.receive_until(type="integrity")
        assert frame["version"] == last["version"]
        assert texts(frame["ops"][0]["messages"]) == ["two", "three"]
        current = await late.open(CHAT, since=last["version"])
        assert current["mode"] == "current"
        await late.raw.expect_silence()

        ahead = await late.open(CHAT, since={**last["version"], "seq": 99})
        assert (ahead["mode"], ahead["reset"]) == ("snapshot", "ahead")
        other_epoch = await late.open(CHAT, since={**opened["version"], "epoch": 0 + 9})
        assert (other_epoch["mode"], other_epoch["reset"]) == ("snapshot", "ahead")
        assert texts(other_epoch["messages"]) == ["one", "two", "three"]
        await writer.close()
        await late.close()


@pytest.mark.parametrize("fast_path", [True, False])
async def test_both_paths_serve_the_same_conversation(tmp_path: Path, fast_path: bool) -> None:
    async with running(tmp_path, fast_path=fast_path) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        assert (await tab.append(CHAT, "x" * 100_000))["type"] == "ack"
        again = await tab.open(CHAT)
        assert texts(again["messages"]) == ["x" * 100_000]
        await tab.close()
