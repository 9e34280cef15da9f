"""Held: what is pending, noted at the cost of the commit."""

from __future__ import annotations

from msgspec import Raw

from tellback_protocol.effects import AppendEffect, DeleteEffect, InsertEffect, MetadataEffect, PatchEffect, StateEffect
from tellback_protocol.ids import Version
from tellback_server.store.held import Pending

VERSION = Version(1, 1, "c60e05dd-48f2-4b52-8682-acc155cd5312")


def append(message_id: str) -> AppendEffect:
    return AppendEffect([Raw(b'{"id":"%b"}' % message_id.encode())])


def test_appends_and_changes_of_what_is_not_in_the_file_yet_stay_appends() -> None:
    pending = Pending()
    pending.add([append("a")])
    pending.add([append("b"), PatchEffect("a", Raw(b"[]"))])
    pending.add([DeleteEffect(["b"]), append("c")])

    assert list(pending.appended) == ["a", "c"]
    assert not pending.rewrite
    assert pending.commits == 3


def test_everything_else_writes_the_file_whole() -> None:
    for effect in (
        PatchEffect("old", Raw(b"[]")), DeleteEffect(["old"]), InsertEffect(None, []), MetadataEffect(Raw(b"[]")),
    ):
        pending = Pending()
        pending.add([effect])
        assert pending.rewrite


def test_a_state_does_not_touch_the_chat_file() -> None:
    pending = Pending()
    pending.add([StateEffect("memory", VERSION, None, data=Raw(b"{}"))])
    assert pending.states == {"memory"}
    assert not pending.rewrite
    assert pending


def test_what_a_failed_checkpoint_gives_back_comes_before_what_came_since() -> None:
    earlier, pending = Pending(), Pending()
    earlier.add([append("a"), StateEffect("x", VERSION, None, deleted=True)])
    pending.add([append("b")])

    pending.give_back(earlier)

    assert list(pending.appended) == ["a", "b"]
    assert pending.states == {"x"}
    assert pending.commits == 2
    assert not Pending()
