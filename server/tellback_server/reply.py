"""Reply: a generation, as the task sees it that streams its text from a model server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tellback_protocol.errors import Refused

if TYPE_CHECKING:
    from tellback_protocol.generation_requests import GenerationError
    from tellback_server.generation import ChatGenerations

__all__ = ["Reply"]


class Reply:
    """See the module; a Sink of `producers`."""

    __slots__ = ("_chat", "_id")

    def __init__(self, chat: ChatGenerations, generation_id: str) -> None:
        self._chat = chat
        self._id = generation_id

    def add(self, text: str, reasoning: str) -> None:
        one = self._chat.live.get(self._id)
        if one is None:
            raise Refused("generation-ended", "This generation has ended.")
        units, reasoning_units = one.place
        self._chat.add(one, units, text, reasoning_units, reasoning)

    def learn(self, finish_reason: str | None, usage: dict[str, Any] | None) -> None:
        one = self._chat.live.get(self._id)
        if one is not None:
            one.running.provenance.learn(finish_reason, usage)

    def end(self, error: GenerationError | None) -> bool:
        if self._id not in self._chat.live:
            return True
        return self._chat.end(self._id, "stored" if error is None else "failed", error)
