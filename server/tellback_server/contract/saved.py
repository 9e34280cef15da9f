"""Saved: a chat with a store behind it, as the server holds one; what the contract's tests change and save."""

from __future__ import annotations

import random
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Raw

from tellback_protocol.chat import Chat
from tellback_protocol.effects import (
    AppendEffect,
    DeleteEffect,
    Effect,
    InsertEffect,
    MetadataEffect,
    PatchEffect,
    RenamedEffect,
    StateEffect,
)
from tellback_protocol.ids import Version
from tellback_protocol.stream import StateDocument
from tellback_server.clock import Clock
from tellback_server.store.base import Store, StoredChat
from tellback_server.store.schemes import open_store

__all__ = ["ODD_LINES", "ODD_TEXTS", "Saved", "patch_of", "same", "write_until_killed", "written_value"]

ODD_TEXTS = (
    "plain", "with space", "Ünïcödé", "日本語", "e\u0301 is not é", "😀 emoji", "a\u202eb", "100%_of'em",
    '"; DROP TABLE x; --', "*?[a-z]{}", "\\back\\slash", "a:b", "tab\there", "line\nfeed", "nul\0byte",
    "half \ud800 pair", "#hash#", "x" * 120,
)
ODD_LINES = (
    b'{"id":"%s","z":1,"a":9223372036854775807,"A":-9223372036854775808,"mes":"key order"}',
    b'{"id":"%s","mes":"\xe2\x80\xa8 and \xe2\x80\xa9 end no line"}',
    b'{"id":"%s","mes":"half \\ud800 a pair, \\u0000 and \\/"}',
    b'{ "id" : "%s" , "mes":"1.0e5 spaced", "n": 1.0e5, "n":0.10 }',
    b'{"id":"%s","mes":"\xf0\x9f\x98\x80","nested":{"b":[],"a":null}}',
)


class Saved:
    """A chat as the server holds it, with a store behind: every change is effects and a value."""

    def __init__(self, name: str = "character:Alice/One", chat_id: str | None = None) -> None:
        self._clock = Clock()
        self.chat = Chat(Version(1, 0, self._clock.integrity()))
        self.chat_id = chat_id or str(uuid.uuid4())
        self.name = name
        self.head = self.chat.version
        self.states: dict[str, StateDocument] = {}
        self.effects: list[Effect] = []
        self.base: Version | None = None
        """Where the store stands."""
        self.made = 0

    def commit(self, *effects: Effect) -> None:
        """One commit; `save` brings the store everything since it was last saved."""
        # As a server makes them: those of one process begin alike.
        self.head = Version(self.head.epoch, self.head.seq + 1, self._clock.integrity())
        for effect in effects:
            if isinstance(effect, StateEffect):
                effect.version = self.head
                data = effect.data
                self.states[effect.namespace] = StateDocument(
                    self.head, bytes(data) if isinstance(data, Raw) else None
                )
            elif isinstance(effect, RenamedEffect):
                self.name = effect.to
            else:
                self.chat.apply(effect)
                self.chat.version = self.head
            self.effects.append(effect)

    def lines(self, count: int, template: bytes | None = None) -> list[Raw]:
        """New messages."""
        made = []
        for _ in range(count):
            self.made += 1
            message_id = b"m%d" % self.made
            made.append(Raw(template % message_id if template else b'{"id":"%b","mes":"text"}' % message_id))
        return made

    def append(self, count: int = 1, template: bytes | None = None) -> None:
        self.commit(AppendEffect(self.lines(count, template)))

    def value(self) -> StoredChat:
        """What a save is given; a copy that nobody changes."""
        return StoredChat(
            chat_id=self.chat_id, name=self.name, head=self.head, version=self.chat.version,
            metadata=self.chat.metadata, messages=dict(self.chat.messages), states=dict(self.states),
            summary=b'{"count":%d}' % len(self.chat.messages),
        )

    def save(self, store: Store, user: str = "default-user", *, whole: bool = False) -> StoredChat:
        """Save what is new."""
        value = self.value()
        store.save(user, self.base, None if whole else self.effects, value)
        self.base, self.effects = self.head, []
        return value

    def change(self, chance: random.Random) -> None:
        """One commit of any kind."""
        ids = list(self.chat.messages)
        match chance.randrange(9) if ids else 0:
            case 0 | 1:
                self.append(chance.randint(1, 3), chance.choice([None, *ODD_LINES]))
            case 2:
                after = chance.choice([None, ids[-1], *ids])
                self.commit(InsertEffect(after, self.lines(chance.randint(1, 3))))
            case 3:
                gone = chance.sample(ids, min(len(ids), chance.randint(1, 3)))
                self.commit(DeleteEffect(gone))
            case 4:
                # The same id again, elsewhere: a deletion that was taken back.
                one = chance.choice(ids)
                again = Raw(self.chat.messages[one])
                back: Effect = InsertEffect(chance.choice([None, *(other for other in ids if other != one)]), [again])
                self.commit(DeleteEffect([one]), chance.choice([back, AppendEffect([again])]))
            case 5:
                new = self.lines(2)
                self.commit(
                    AppendEffect(new[:1]), InsertEffect(f"m{self.made - 1}", new[1:]),
                    DeleteEffect([f"m{self.made - 1}", chance.choice(ids)]),
                )
            case 6:
                self.commit(PatchEffect(chance.choice(ids), patch_of(b"mes", b'"changed"')))
            case 7:
                self.commit(MetadataEffect(patch_of(b"note", b"%d" % self.made)))
            case _:
                data = chance.choice([None, b'{"n":%d}' % self.made])
                effect = StateEffect(chance.choice(["memory", "notes.1"]), self.head, None)
                if data is None:
                    effect.deleted = True
                else:
                    effect.data = Raw(data)
                self.commit(effect)


def patch_of(key: bytes, value: bytes) -> Raw:
    """RFC 6902 operations that set one field."""
    return Raw(b'[{"op":"add","path":"/%b","value":%b}]' % (key, value))


def same(found: StoredChat | None, expected: StoredChat) -> None:
    """Asserts that a store gave back exactly what it was given."""
    assert found is not None, f"{expected.chat_id} is missing"
    assert list(found.messages.items()) == list(expected.messages.items())
    assert {name: _fields(one) for name, one in found.states.items()} == {
        name: _fields(one) for name, one in expected.states.items()
    }
    assert msgspec.structs.replace(found, messages={}, states={}) == msgspec.structs.replace(
        expected, messages={}, states={}
    )


def _fields(document: StateDocument) -> tuple[Version | None, bytes | None, bool]:
    return document.version, document.data, document.corrupt


def _written(chat_id: str) -> Iterator[tuple[Saved, list[Any]]]:
    """The same commits every time: an append and a state, and now and then a deletion at the front."""
    saved = Saved(chat_id=chat_id)
    saved.head = saved.chat.version = Version(1, 0, str(uuid.UUID(int=0)))
    while True:
        effects: list[Any] = [AppendEffect(saved.lines(1)), StateEffect("memory", saved.head, None)]
        effects[1].data = Raw(b'{"n":%d}' % saved.made)
        if saved.made % 5 == 0:
            effects.append(DeleteEffect([next(iter(saved.chat.messages))]))
        saved.commit(*effects)
        # The integrity is the number, so that whoever reads can work the value out again.
        version = Version(1, saved.head.seq, str(uuid.UUID(int=saved.head.seq)))
        saved.head = saved.chat.version = saved.states["memory"].version = version
        yield saved, effects


def written_value(chat_id: str, seq: int) -> StoredChat:
    """What `write_until_killed` had at a commit."""
    for saved, _ in _written(chat_id):
        if saved.head.seq == seq:
            return saved.value()
    raise AssertionError("unreachable: it goes on for ever")


def write_until_killed(url: str, chat_id: str) -> None:
    """Save one commit after the other, and tell each on a line of its own when it is saved."""
    store = open_store(url)
    store.check()
    for saved, _ in _written(chat_id):
        saved.save(store)
        sys.stdout.write(f"{saved.head.seq}\n")
        sys.stdout.flush()
