"""Adoption: what becomes of a chat whose file another program changed. Pure: values in, a decision out.

Rules of this module (STORAGE "User files", F7 and F9):
- The outside program's file is the chat now. Nothing of it is undone.
- A pending commit (acknowledged, not yet in a file) applies on top when everything it was made from is still there:
  appended messages always; a patched or deleted message when its line has the CRC in `Commit.was`; metadata when what
  it changes is as ours was (SillyTavern's saves change others: its own `integrity`, what a reply notes).
- When one pending commit does not apply, our whole version goes to a chat of its own: nothing acknowledged is lost.
- When nothing is refused and something of ours is gone or changed, our version is kept as a backup first.
- State documents are files of their own: pending states stay pending.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec
from msgspec import Raw

from tellback_protocol.chat import Chat, message_id_of
from tellback_protocol.effects import (
    AppendEffect,
    ChatEffect,
    Commit,
    DeleteEffect,
    Effect,
    InsertEffect,
    MetadataEffect,
    PatchEffect,
)
from tellback_protocol.errors import Refused
from tellback_protocol.patch import parse_pointer
from tellback_protocol.values import dumps, equal, loads

__all__ = ["Decision", "decide_adoption", "known_from_log"]


class Decision(msgspec.Struct, gc=False):
    """What to do about an outside edit of a chat file."""

    chat: Chat
    """The outside program's chat with what applied on top."""
    effects: list[Effect]
    """What applied, as it has to be applied to the file again."""
    was: dict[str, int]
    """CRC-32 of the outside program's lines that `effects` change, by message id."""
    refused: list[int]
    """Seqs of pending commits that do not apply; when there are any, our version becomes a chat of its own."""
    lost: bool
    """A message of ours is not in `chat` as we have it; our version becomes a backup when nothing is refused."""


def decide_adoption(
    theirs: Chat, ours: Chat, pending: Sequence[Commit], metadata_before: bytes | None, *, is_damaged: bool
) -> Decision:
    """What becomes of `theirs` (the file as found) and of `ours` (all we acknowledged, at our head).

    `metadata_before` is our metadata at the watermark, None when it is not known. A damaged file takes nothing on top.
    Cost: both chats once.
    """
    chat = theirs.copy()
    effects: list[Effect] = []
    was: dict[str, int] = {}
    refused: list[int] = []
    known = None if metadata_before is None else Chat(theirs.version, metadata_before)
    for commit in pending:
        done = [effect for effect in commit.ops if isinstance(effect, ChatEffect)]
        if not done:
            continue
        draft = None if is_damaged else _applied(chat, commit, done, known)
        known = _with_metadata(known, done)
        if draft is None:
            refused.append(commit.version.seq)
            continue
        after, applied = draft
        for effect in applied:
            for message_id in _changed(effect):
                if message_id in theirs.messages:
                    was.setdefault(message_id, zlib.crc32(theirs.messages[message_id]))
        chat = after
        effects.extend(applied)
    return Decision(chat, effects, was, refused, _is_lost(ours, chat))


def _applied(
    chat: Chat, commit: Commit, wanted: Iterable[Effect], known: Chat | None
) -> tuple[Chat, list[Effect]] | None:
    """The chat with a commit's effects on it and the effects as they were applied, or None when one does not fit.

    `known` has our metadata before the commit; without it, what undoes the commit tells what it was made from.
    """
    draft = chat.copy()
    applied: list[Effect] = []
    touched: set[str] = set()
    backwards = iter([effect for effect in reversed(commit.undo) if isinstance(effect, MetadataEffect)])
    for effect in wanted:
        match effect:
            case AppendEffect() | InsertEffect():
                fresh = [raw for raw in effect.messages if message_id_of(bytes(raw)) not in draft.messages]
                touched.update(message_id_of(bytes(raw)) for raw in effect.messages)
                if not fresh:
                    continue
                effect = msgspec.structs.replace(effect, messages=fresh)
            case PatchEffect():
                if effect.message not in touched and not _is_as_it_was(draft, effect.message, commit.was):
                    return None
                touched.add(effect.message)
            case DeleteEffect():
                present = [message_id for message_id in effect.messages if message_id in draft.messages]
                for message_id in present:
                    if message_id not in touched and not _is_as_it_was(draft, message_id, commit.was):
                        return None
                if not present:
                    continue
                effect = DeleteEffect(present)
            case MetadataEffect():
                back = next(backwards, None)
                fits = _leads_back(draft, effect, back) if known is None else _is_same_where(effect, known, draft)
                if not fits:
                    return None
                known = _with_metadata(known, [effect])
        try:
            draft.apply(effect)
        except Refused:
            # The bytes are those it was made from by CRC only; a collision must not end the recovery.
            return None
        applied.append(effect)
    return draft, applied


def _is_as_it_was(chat: Chat, message_id: str, was: Mapping[str, int]) -> bool:
    """Whether a line is the one that a commit was made from; another program may have spelled it anew."""
    line = chat.messages.get(message_id)
    wanted = was.get(message_id)
    if line is None or wanted is None:
        return False
    return zlib.crc32(line) == wanted or zlib.crc32(dumps(loads(line))) == wanted


def _with_metadata(known: Chat | None, effects: Iterable[Effect]) -> Chat | None:
    if known is None:
        return None
    after = known.copy()
    fits = [_try(after, effect) for effect in effects if isinstance(effect, MetadataEffect)]
    return after if all(fits) else None


def _is_same_where(effect: MetadataEffect, ours: Chat, theirs: Chat) -> bool:
    """Whether both have the same metadata at every path of the patch."""
    left, right = loads(ours.metadata), loads(theirs.metadata)
    return all(
        _is_same_at(left, right, parse_pointer(operation[member], member))
        for operation in loads(bytes(effect.patch)) for member in ("path", "from") if member in operation
    )


def _leads_back(chat: Chat, effect: MetadataEffect, undo: MetadataEffect | None) -> bool:
    """Whether a patch and what undoes it leave metadata as they are: where it changes them, they were as ours.

    Elements of lists and what is copied do not tell; they do not fit.
    """
    if undo is None:
        return False
    value = loads(chat.metadata)
    for operation in loads(bytes(effect.patch)):
        if "from" in operation or _meets_list(value, parse_pointer(operation["path"], "path")):
            return False
    trial = Chat(chat.version, chat.metadata)
    return _try(trial, effect) and _try(trial, undo) and equal(loads(trial.metadata), value)


def _meets_list(value: Any, tokens: list[str]) -> bool:
    for token in tokens:
        if isinstance(value, list):
            return True
        value = value.get(token) if isinstance(value, dict) else None
    return False


def _is_same_at(left: Any, right: Any, tokens: list[str]) -> bool:
    """An index means what it meant only in an equal list."""
    for token in tokens:
        if not isinstance(left, dict) or not isinstance(right, dict):
            break
        if token not in left or token not in right:
            return token not in left and token not in right
        left, right = left[token], right[token]
    return equal(left, right)


def _changed(effect: Effect) -> list[str]:
    if isinstance(effect, PatchEffect):
        return [effect.message]
    return effect.messages if isinstance(effect, DeleteEffect) else []


def _is_lost(ours: Chat, chat: Chat) -> bool:
    for message_id, line in ours.messages.items():
        theirs = chat.messages.get(message_id)
        if theirs is None:
            return True
        if theirs != line and not equal(ours.value(message_id), chat.value(message_id)):
            return True
    return False


def known_from_log(theirs: Chat, done: Sequence[Commit], pending: Sequence[Commit]) -> Chat:
    """Our version as far as the log tells it, for a restart that finds our file replaced.

    Built over `theirs`: messages that only we know are appended; a retained patch is carried out where it is pending or
    where the file went back to the line before it. Metadata is theirs with our pending patches, where they fit.
    """
    chat = theirs.copy()
    for commit in done:
        deletions = [effect.messages for effect in commit.ops if isinstance(effect, DeleteEffect)]
        for effect in commit.ops:
            match effect:
                case AppendEffect() | InsertEffect():
                    chat.apply(effect)
                case PatchEffect():
                    if effect.message not in theirs.messages or _is_as_it_was(chat, effect.message, commit.was):
                        _patch(chat, effect)
        for message_id in chain.from_iterable(deletions):
            if message_id not in theirs.messages:
                chat.apply(DeleteEffect([message_id]))
    for commit in pending:
        for effect in commit.ops:
            if isinstance(effect, PatchEffect):
                _patch(chat, effect)
            elif isinstance(effect, MetadataEffect):
                _try(chat, effect)
            else:
                chat.apply(effect)
    return chat


def _patch(chat: Chat, effect: PatchEffect) -> None:
    """Carries out a patch; where its message is gone or does not fit, what it put there is kept as a message."""
    if effect.message in chat.messages and _try(chat, effect):
        return
    values = {
        operation["path"][1:]: operation["value"]
        for operation in loads(bytes(effect.patch))
        if operation["op"] in ("add", "replace") and operation["path"].count("/") == 1
    }
    if not values:
        return
    old = chat.value(effect.message) if effect.message in chat.messages else {"id": effect.message}
    line = dumps({**old, **values})
    if effect.message in chat.messages:
        chat.apply(PatchEffect(effect.message, Raw(b"[]")), {effect.message: line})
    else:
        chat.messages[effect.message] = line
        chat.appended((effect.message,))


def _try(chat: Chat, effect: Effect) -> bool:
    try:
        chat.apply(effect)
    except Refused:
        return False
    return True
