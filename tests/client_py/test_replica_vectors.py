"""The client's replica runs the vectors: whatever a commit did, its effects are enough to stay equal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tellback_client.replica import Replica
from tellback_protocol.chat import Chat
from tellback_protocol.effects import decode_effects
from tellback_protocol.frames import StateValue
from tellback_protocol.ids import Version
from tellback_protocol.past import wire_effects
from tellback_protocol.values import dumps, loads
from tests.support import vectors

STEPPED = ("decide", "swipes", "floors", "generations", "life")
COMMITS = [
    *((label, vector["document"], [(vector["version"], vector["effects"])], vector["after"])
      for label, vector in vectors.read("apply")),
    *((label, vector["document"], [(step["answer"]["version"], step["effects"]) for step in vector["steps"]
                                   if "effects" in step and step["answer"]["type"] == "ack"], vector["after"])
      for folder in STEPPED for label, vector in vectors.read(folder) if "steps" in vector),
]


@pytest.mark.parametrize(
    ("document", "commits", "after"), [pytest.param(*rest, id=label) for label, *rest in COMMITS])
def test_a_replica_that_installs_what_it_is_told_holds_the_document(
    document: dict[str, Any], commits: list[tuple[dict[str, Any], list[dict[str, Any]]]], after: dict[str, Any]
) -> None:
    """[E1] Chat, metadata, name, and every state that travelled whole or was asked for before."""
    version = vectors.version_of(document["version"])
    head = vectors.version_of(document["head"]) if "head" in document else version
    chat = Chat.from_values(version, document["metadata"], document["messages"])
    name = document.get("owner", "group:vectors")
    replica = Replica(name, vectors.CHAT_ID, chat, head)
    replica.stream.deleted = bool(document.get("deleted"))
    for namespace, state in document.get("states", {}).items():
        if "data" in state:
            replica.install_state(namespace, StateValue(vectors.version_of(state["version"]), dumps(state["data"])))  # type: ignore[arg-type]
    for told, effects in commits:
        replica.install(vectors.version_of(told), wire_effects(decode_effects(dumps(effects))))
    stream = replica.stream
    assert json.loads(stream.chat.metadata) == after["metadata"]
    assert [json.loads(line) for line in stream.chat.served_all()] == after["messages"]
    assert stream.chat.version == vectors.version_of(after["version"])
    assert stream.head == vectors.version_of(after["head"])
    assert (stream.name, stream.deleted) == (after.get("name", name), after.get("deleted", False))
    for namespace, held in stream.states.items():
        expected = after["states"].get(namespace, {})
        assert (None if held.data is None else loads(held.data)) == expected.get("data")
        if held.data is not None:
            assert held.version is not None
            assert held.version == Version(**expected["version"])
