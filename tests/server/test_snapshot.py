"""A chat as it is sent: whole messages, about 64 KiB a part, held still while the chat goes on."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from tellback_protocol.chat import Chat
from tellback_protocol.effects import AppendEffect, DeleteEffect, PatchEffect
from tellback_protocol.ids import Version
from tellback_server.snapshot import PART_BYTES, Snapshot
from tests.support.websocket_frames import server_frames

CHAT = b'"chat":"group:x"'


def chat_of(*sizes: int) -> Chat:
    """Messages m0, m1, ... with texts of these sizes."""
    messages = {
        f"m{number}": orjson.dumps({"id": f"m{number}", "mes": "x" * size}) for number, size in enumerate(sizes)
    }
    return Chat(Version(1, 5, "00000000-0000-4000-8000-000000000005"), b"{}", messages)


def decoded(snapshot: Snapshot) -> list[dict[str, Any]]:
    return [json.loads(payload) for frame in snapshot.frames(CHAT) for _, payload in server_frames(frame)]


@pytest.mark.parametrize("sizes", [(), (1,), (PART_BYTES * 3,), (10,) * 5000, (PART_BYTES // 2 + 10,) * 7,
                                   (PART_BYTES * 2, 1, 1, PART_BYTES * 2)])
def test_parts_hold_whole_messages_and_at_least_one(sizes: tuple[int, ...]) -> None:
    """[R5]"""
    snapshot = Snapshot(chat_of(*sizes))
    assert snapshot.count == len(sizes)
    parts = decoded(snapshot)
    assert len(parts) == snapshot.parts
    assert [(part["part"], part["of"]) for part in parts] == [(n, len(parts)) for n in range(1, len(parts) + 1)]
    messages = [message for part in parts for message in part["messages"]]
    assert [message["id"] for message in messages] == [f"m{number}" for number in range(len(sizes))]
    for part in parts:
        assert part["messages"] or not sizes
        assert len(part["messages"]) == 1 or sum(len(message["mes"]) for message in part["messages"]) <= PART_BYTES
    assert list(map(orjson.loads, snapshot.messages())) == messages


def test_what_comes_later_is_not_in_a_snapshot_that_was_taken() -> None:
    """[R5]: all parts show the version in `opened`."""
    chat = chat_of(PART_BYTES, PART_BYTES, PART_BYTES)
    before = [json.loads(raw) for raw in chat.served_all()]
    snapshot = Snapshot(chat)
    frames = snapshot.frames(CHAT)
    first = next(frames)
    chat.apply(PatchEffect("m1", orjson.dumps([{"op": "replace", "path": "/mes", "value": "new"}])))  # type: ignore[arg-type]
    chat.apply(DeleteEffect(["m2"]))
    chat.apply(AppendEffect([orjson.dumps({"id": "m3", "mes": "late"})]))  # type: ignore[list-item]
    sent = [json.loads(payload) for frame in (first, *frames) for _, payload in server_frames(frame)]
    assert [message for part in sent for message in part["messages"]] == before


@pytest.mark.parametrize(("tail", "first"), [(0, 10), (1, 9), (10, 0), (11, 0), (None, 0)])
def test_a_tail_says_where_it_begins(tail: int | None, first: int) -> None:
    snapshot = Snapshot(chat_of(*range(10)), tail)
    assert (snapshot.first, snapshot.count) == (first, 10)
    assert [orjson.loads(raw)["id"] for raw in snapshot.messages()] == [f"m{number}" for number in range(first, 10)]
