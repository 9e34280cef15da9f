"""Epochs in a run: another program's edit, or a backup in the chat's place, is a turn. Behind it stands another chat.

What is in the new chat is the other program's business; that nothing of ours is gone without a trace is the server's:
a text that the chat had before a turn, and has not behind it, stands in some file of the user (F9, Z2).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

from tests.checker.evidence import Evidence
from tests.checker.notebook import Frame, Key, Notes, received
from tests.checker.reference import Reference


def timeline(evidence: Evidence) -> list[tuple[Frame, Frame | None]]:
    """(version, commit) in the order of the log; None where an epoch begins."""
    found: list[tuple[Frame, Frame | None]] = [(commit["version"], commit) for commit in evidence.history]
    found += [(turn, None) for turn in evidence.turns if turn["epoch"] > evidence.first["head"]["epoch"]]
    return sorted(found, key=lambda one: (one[0]["epoch"], one[0]["seq"], one[1] is not None))


class Retold:
    """What was read of the chat and of what was made of it, by version; and how a Reference gets over a turn.

    It is blind from a turn on until somebody read the chat at a version that is known.
    """

    def __init__(self, notes: Notes, evidence: Evidence, reference: Reference) -> None:
        self.is_blind = False
        self._reference = reference
        self._reads = reads_of(notes, evidence)
        self._backups = {backup["backup"]: backup for backup in evidence.backups}
        self._invocations = notes.invocations
        self._beside = evidence.beside

    def turn(self, version: Frame) -> Iterator[tuple[str, list[Frame], list[Frame]]]:
        """An epoch begins. Of a backup that was restored: what it must be, and what is there."""
        self.is_blind = True
        self.look(version)
        for invocation in self._invocations.values():
            outcome = invocation.outcome
            if outcome is None or outcome.get("restored", {}).get("version") != version:
                continue
            backup = self._backups.get(outcome["restored"]["backup"])
            for who, frame in self._reads.get(version["integrity"], ()) if backup is not None else ():
                yield f"{who} read behind the restore", backup["messages"], frame["messages"]

    def look(self, version: Frame) -> None:
        """While blind: has anybody read the chat at this version?"""
        for _who, frame in self._reads.get(version["integrity"], ()):
            self._reference.begin_again(version, frame["messages"], frame["metadata"])
            self.is_blind = False

    def read_at(self, version: Frame, key: Key | None) -> Iterator[tuple[str, list[Frame], list[Frame]]]:
        """Who holds the messages as this commit left them: who, what they must be, what they are."""
        messages = list(self._reference.copy.messages.values())
        for who, frame in self._reads.get(version["integrity"], ()):
            yield f"{who} read", messages, frame["messages"]
        for backup in self._backups.values():
            if backup["version"]["integrity"] == version["integrity"]:
                yield f"the backup {backup['backup']} holds", messages, backup["messages"]
        invocation = None if key is None else self._invocations.get(key)
        outcome = None if invocation is None else invocation.outcome
        if invocation is None or outcome is None or "branch" not in outcome:
            return
        told = self._beside.get(outcome["branch"]["chat_id"])
        if invocation.frame["type"] == "chat-branch":
            ids = list(self._reference.copy.messages)
            messages = messages[: ids.index(invocation.frame["message"]) + 1]
        else:
            messages = self._backups[invocation.frame["backup"]]["messages"]
        # Its links follow the chats that they name, so they are not looked at.
        shown = [] if told is None else told.get("messages", [])
        yield f"{outcome['branch']['chat']} holds", _said(messages), _said(shown)


def reads_of(notes: Notes, evidence: Evidence) -> dict[str, list[tuple[str, Frame]]]:
    """Every whole chat that was told in one frame, by its version: who was told, and the frame."""
    found: dict[str, list[tuple[str, Frame]]] = {}
    for tab, _at, frame in received(notes):
        if frame["type"] == "opened" and frame["mode"] == "snapshot" and "messages" in frame:
            found.setdefault(frame["head"]["integrity"], []).append((tab, frame))
    return found


def given_up(notes: Notes, evidence: Evidence) -> Iterator[str]:
    """Texts that a turn took out of the chat, or that another program wrote, and that stand nowhere."""
    elsewhere = set(evidence.elsewhere)
    reads = reads_of(notes, evidence)
    reference = Reference(evidence.first)
    # By message; None where a second turn comes before anybody has read the chat behind the first.
    before: dict[str, str] | None = {}
    is_blind = False
    for version, commit in timeline(evidence):
        if commit is None:
            before = None if is_blind else _by_message(reference.copy.messages.values())
            is_blind = True
        elif not is_blind:
            reference.copy.install(version, copy.deepcopy(commit["ops"]))
            continue
        elif before is not None:
            # What was asked for behind the turn took these away, and not the turn.
            for effect in commit["ops"]:
                for message in [effect.get("message"), *(effect["messages"] if effect["op"] == "delete" else [])]:
                    before.pop(message, None)
        frame = next((frame for _who, frame in reads.get(version["integrity"], ())), None)
        if frame is None:
            continue
        reference.begin_again(version, frame["messages"], frame["metadata"])
        is_blind = False
        for text in sorted({*(before or {}).values()} - _texts(frame["messages"]) - elsewhere):
            yield f"{text!r} was in the chat before epoch {version['epoch']}, and stands nowhere since"
    shown = {text for frames in reads.values() for _who, frame in frames for text in _texts(frame["messages"])}
    for event in notes.events:
        if event["what"] == "edited" and event["text"] not in elsewhere | shown:
            yield f"another program wrote {event['text']!r}, and it stands nowhere"


def said_twice(notes: Notes, evidence: Evidence) -> Iterator[str]:
    """Nobody writes a text twice: who is shown one twice sees an edit or a restore that was carried out by halves."""
    for frames in reads_of(notes, evidence).values():
        for who, frame in frames:
            told = [message.get("mes") for message in frame["messages"]]
            if len(told) != len(set(told)):
                twice = sorted({str(text) for text in told if told.count(text) > 1})
                yield f"{who} reads {twice} twice at {frame['head']}"


def _by_message(messages: Iterable[Frame]) -> dict[str, str]:
    return {message["id"]: message["mes"] for message in messages if "mes" in message}


def _texts(messages: Iterable[Frame]) -> set[str]:
    return set(_by_message(messages).values())


def _said(messages: list[Frame]) -> list[Frame]:
    return [{name: message.get(name) for name in ("id", "mes", "swipe_id")} for message in messages]
