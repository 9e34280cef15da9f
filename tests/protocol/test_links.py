"""Links to a chat that has another name now: what follows, and what does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tellback_protocol.chat import Chat
from tellback_protocol.decide import Fresh, decide_links, install_commit
from tellback_protocol.effects import decode_commit
from tellback_protocol.frames import Limits
from tellback_protocol.ids import Version
from tellback_protocol.links import is_all
from tellback_protocol.stream import Stream

START = "00000000-0000-4000-8000-000000000000"
FRESH = Fresh("00000000-0000-4000-8000-000000000001", 1, 0)


def stream(metadata: dict[str, Any], *messages: dict[str, Any]) -> Stream:
    numbered = [{"id": f"m{number}", **message} for number, message in enumerate(messages)]
    return Stream("user", "group:x", "id", Chat.from_values(Version(1, 0, START), metadata, numbered))


def test_every_kind_of_link_follows_and_a_replica_sees_the_same_j12() -> None:
    """[J12] [E1]"""
    extra = {"bookmark_link": "Old", "branches": ["a", "Old", {}, "Old \"2\""], "x": "Old"}
    new = {"bookmark_link": "New", "branches": ["a", "New", {}, "New"], "x": "Old"}
    message = {"mes": "Old", "swipes": ["Old"], "swipe_id": 0, "swipe_info": [{"extra": extra}], "extra": extra}
    live = stream({"main_chat": "Old", "note": "Old"}, message, {"mes": "y", "extra": ["Old"]}, {"extra": "Old"})
    replica = stream({"main_chat": "Old", "note": "Old"}, message, {"mes": "y", "extra": ["Old"]}, {"extra": "Old"})
    decision = decide_links(live, {"Old", 'Old "2"'}, "New", FRESH, Limits())
    assert decision is not None
    install_commit(live, decision)
    replica.fold(decode_commit(decision.record))
    for one in (live, replica):
        assert one.chat.metadata_value() == {"main_chat": "New", "note": "Old"}
        assert one.chat.values() == [
            {"id": "m0", **message, "extra": new, "swipe_info": [{"extra": new}]},
            {"id": "m1", "mes": "y", "extra": ["Old"]}, {"id": "m2", "extra": "Old"},
        ]
    assert is_all(decision.effects)
    assert b'"by"' not in decision.core
    assert decide_links(live, {"Old"}, "New", FRESH, Limits()) is None, "told twice changes nothing"


@pytest.mark.parametrize("value", [None, 5, [], {}, {"extra": None}, {"extra": {"branches": "Old"}}, {"mes": "Old"},
                                   {"swipe_info": {"extra": {"bookmark_link": "Old"}}}, {"swipe_info": [None, "Old"]}])
def test_what_is_no_link_is_left_alone(value: object) -> None:
    message = value if isinstance(value, dict) else {"extra": {"bookmark_link": value, "branches": value, "t": "Old"}}
    assert decide_links(stream({"main_chat": value, "t": "Old"}, message), {"Old"}, "New", FRESH, Limits()) is None


@pytest.mark.parametrize("spelled", [json.dumps("Ölд 😀"), json.dumps("Ölд 😀", ensure_ascii=False)])
def test_a_link_is_found_in_both_spellings_of_json(spelled: str) -> None:
    """As Python and as JavaScript write it; a line without it keeps its bytes."""
    line = b'{"id":"m","extra":{"bookmark_link":%b}}' % spelled.encode()
    chat = Chat(Version(1, 0, START), b'{"main_chat":%b}' % spelled.encode(), {"m": line, "n": b'{"id":"n" }'})
    one = Stream("user", "group:x", "id", chat)
    decision = decide_links(one, {"Ölд 😀"}, "New", FRESH, Limits())
    assert decision is not None
    install_commit(one, decision)
    assert one.chat.value("m")["extra"] == {"bookmark_link": "New"}
    assert one.chat.metadata_value() == {"main_chat": "New"}
    assert one.chat.messages["n"] == b'{"id":"n" }'
