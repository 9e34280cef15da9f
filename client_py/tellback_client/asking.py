"""Asking the server, and waiting for its answer.

Rules of this module:
- What is asked is asked again on the next connection when one ends first; the answer is the caller's own all the same.
- A caller may be cancelled; what comes then is dropped.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from tellback_protocol.codec import encode
from tellback_protocol.frames import Ack

if TYPE_CHECKING:
    from .link import Link
    from .question import Waiter

__all__ = ["Asking", "waiter_of"]


def waiter_of(future: asyncio.Future[Any]) -> Waiter:
    """Gives the future its answer, or the error that came instead."""

    def answered(answer: Any) -> None:
        if future.done():
            return
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    return answered


class Asking(ABC):
    """The part of `Client` that asks."""

    @abstractmethod
    def _started(self) -> Link:
        """The link of a client that was entered."""

    @abstractmethod
    def stepped(self) -> None:
        """There may be something to send. Never waits."""

    async def _ask(self, request: Any) -> Any:
        """Send a request and wait for its answer. Raises RefusedError, ConnectionLost, ClientClosed."""
        link = self._started()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        request_id = link.new_request_id()
        read = link.ask(request_id, encode(msgspec.structs.replace(request, id=request_id)), waiter_of(future))
        self.stepped()
        answer = await future
        if isinstance(answer, Ack) and read.asked > 1:
            # The answer to a resend is this call's own.
            answer.duplicate = UNSET
        return answer
