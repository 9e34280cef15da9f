"""Whom a request is about."""

from __future__ import annotations

import msgspec
import pytest

from tellback_protocol.errors import Refused
from tellback_protocol.ids import CharacterChat, CharacterOwner, ChatAddress, ChatById, PresetOwner, StateOwner
from tellback_protocol.requests import Append, Close, Open, OwnerName, OwnerRename, StateGet, address_of, owner_of

CHAT_ID = "11111111-2222-4333-8444-555555555555"


@pytest.mark.parametrize(("frame", "name", "address"), [
    (Open(chat="character:A/b", since=None), "character:A/b", CharacterChat("A", "b")),
    (Append(chat=f"id:{CHAT_ID}", messages=[]), f"id:{CHAT_ID}", ChatById(CHAT_ID)),
    (Open(owner=OwnerName(character="A"), since=None), "character:A", CharacterOwner("A")),
    (OwnerRename(OwnerName(preset="F/p"), "q"), "preset:F/p", PresetOwner("F", "p")),
    (StateGet(OwnerName(chat="character:A/b")), "character:A/b", CharacterChat("A", "b")),
])
def test_a_request_names_one_owner(
    frame: Open | Append | OwnerRename | StateGet, name: str, address: ChatAddress | StateOwner
) -> None:
    """[Q1] [N6]"""
    assert owner_of(frame) == name
    assert address_of(frame, name) == address


@pytest.mark.parametrize(("frame", "code", "pointer"), [
    (Open(since=None), "bad-frame", "/chat"),
    (Close(), "bad-frame", "/chat"),
    (Open(chat="group:a", owner=OwnerName(character="A"), since=None), "bad-frame", "/owner"),
    (StateGet(OwnerName()), "bad-frame", "/owner"),
    (StateGet(OwnerName(character="A", preset="F/p")), "bad-frame", "/owner"),
    (Open(owner=OwnerName(chat="group:a"), since=None), "bad-frame", "/owner"),
    (Open(chat="nobody", since=None), "name-illegal", "/chat"),
    (Open(owner=OwnerName(character=".."), since=None), "name-illegal", "/owner"),
    (Open(owner=OwnerName(preset="alone"), since=None), "name-illegal", "/owner"),
])
def test_a_request_names_nobody_else(frame: msgspec.Struct, code: str, pointer: str) -> None:
    """[Q1] [Q4]"""
    assert isinstance(frame, Open | Close | StateGet)
    with pytest.raises(Refused) as refused:
        address_of(frame, owner_of(frame))
    assert (refused.value.code, refused.value.pointer) == (code, pointer)
