"""Live texts: the replies of one chat as they are written, for commands that show them to people.

    opened, generation-started, generation-delta --> what is new of each text
    the commit that ends one                     --> the rest of it

Rules this module keeps:

- Every unit of a text is given once, in order, through lost connections and kills; a text that became another one is
  given again from its beginning.
- A gap is not guessed at: who asked for the frames attaches, and the answer fills it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Raw

from tellback_protocol.effects import AppendEffect, InsertEffect
from tellback_protocol.errors import Refused
from tellback_protocol.frames import GenerationDeltaFrame, GenerationStarted, IntegrityFrame, Opened
from tellback_protocol.generations import Generation, StreamedText, entries_told
from tellback_protocol.values import loads

__all__ = ["Growth", "LiveTexts"]


class Growth(msgspec.Struct, frozen=True):
    """More of a text, as it came from whomever: not safe for a terminal."""

    generation: str
    text: str
    who: str = ""
    """The speaker, where the beginning of the reply was heard."""
    is_first: bool = False
    """Nothing of it was given before."""
    is_last: bool = False
    """It has ended; `text` is empty."""


class LiveTexts:
    """Of one chat."""

    def __init__(self) -> None:
        self._texts: dict[str, StreamedText] = {}
        self._who: dict[str, str] = {}
        self.gaps: set[str] = set()
        """Generations to attach to; whoever does empties it."""

    def opened(self, frame: Opened) -> Iterator[Growth]:
        """The chat was opened, or opened again."""
        for listed in frame.generations:
            if listed.state == "running":
                yield from self._whole(listed.id, listed.text if isinstance(listed.text, str) else "")

    def started(self, frame: GenerationStarted) -> Iterator[Growth]:
        """One began, or was attached to."""
        yield from self._whole(frame.generation, frame.text)

    def delta(self, frame: GenerationDeltaFrame) -> Iterator[Growth]:
        """More text."""
        known = self._texts.get(frame.generation)
        if known is None:
            self.gaps.add(frame.generation)
            return
        try:
            new = known.rest(frame.offset, frame.text, "offset")
        except Refused:
            self.gaps.add(frame.generation)
            return
        yield from self._grown(frame.generation, known, new)

    def committed(self, frame: IntegrityFrame) -> tuple[dict[str, Generation], list[Growth], set[str]]:
        """What a commit says of generations that ended, the rest of their texts, and the ids of messages whose whole
        text was given.
        """
        ended: dict[str, Generation] = {}
        growths: list[Growth] = []
        given: set[str] = set()
        said = dict(_said(frame))
        for one_id, entry in entries_told(frame.ops).items():
            if entry is None:
                continue
            if entry.state == "running":
                reply: Any = loads(bytes(entry.reply)) if isinstance(entry.reply, Raw) else {}
                self._who[one_id] = str(reply.get("name") or reply.get("role") or "")
                continue
            known = self._texts.pop(one_id, None)
            if known is None:
                # An acknowledgement, or one that nobody here heard.
                continue
            ended[one_id] = entry
            whole = said.get(entry.message)
            if whole is not None and whole.startswith(str(known)):
                growths += self._grown(one_id, known, whole[len(str(known)) :])
                given.add(entry.message)
            elif whole is None and known.units:
                given.add(entry.message)
            growths.append(Growth(one_id, "", self.who(one_id), is_last=True))
        return ended, growths, given

    def who(self, generation_id: str) -> str:
        """The speaker of a reply, as far as it is known."""
        return self._who.get(generation_id, "")

    def _whole(self, one_id: str, text: str) -> Iterator[Growth]:
        known = self._texts.get(one_id)
        before = "" if known is None else str(known)
        if known is None or not (before.startswith(text) or text.startswith(before)):
            known, before = StreamedText(), ""
            self._texts[one_id] = known
        # A server that was killed may have less than was given already.
        yield from self._grown(one_id, known, text[len(before) :])

    def _grown(self, one_id: str, known: StreamedText, new: str) -> Iterator[Growth]:
        if new:
            is_first = not known.units
            known.append(new)
            yield Growth(one_id, new, self.who(one_id), is_first)


def _said(frame: IntegrityFrame) -> Iterator[tuple[str, str]]:
    """Ids and texts of the messages that a commit brings."""
    for effect in frame.ops:
        for raw in effect.messages if isinstance(effect, AppendEffect | InsertEffect) else ():
            message = loads(bytes(raw))
            text = message.get("mes", message.get("content"))
            if isinstance(text, str):
                yield message["id"], text
