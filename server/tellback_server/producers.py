"""Producers: one task for each reply that the server itself streams from a model server.

Rules this module keeps:

- It decides nothing about chats: text goes to the generation's Sink as it arrives, and what ended it goes there once.
- A stop closes the connection to the model server at once, whatever it is doing.
- A task ends by itself when its generation does not want more text: it was cancelled, or the chat is gone.
- A task that fails for a reason of ours ends its generation as failed; no generation waits for a dead task.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, Protocol

import structlog

from tellback_protocol.errors import Refused
from tellback_protocol.generation_requests import GenerationError
from tellback_protocol.values import loads
from tellback_server.completions import Delta
from tellback_server.upstream_errors import UpstreamError

__all__ = ["ModelServers", "ProducerKey", "Producers", "Sink"]

log = structlog.get_logger()

END_AGAIN_S: Final = 0.2
"""Until the chat can be written to again: it is being renamed, or the disk is full."""

ProducerKey = tuple[str, str, str]
"""User, chat id, generation."""


class ModelServers(Protocol):
    """Where replies come from; `upstream` implements it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Who can be asked."""

    def stream(self, name: str, body: Mapping[str, Any]) -> AsyncGenerator[Delta, None]:
        """A reply, delta by delta. Raises: UpstreamError; closing it closes the connection."""


class Sink(Protocol):
    """A running generation, as its producer sees it. Synchronous: every call is one step of the chat's actor."""

    def add(self, text: str, reasoning: str) -> None:
        """More text, behind what there is. Raises Refused when it is not wanted, or does not fit any more."""

    def learn(self, finish_reason: str | None, usage: dict[str, Any] | None) -> None:
        """What the model server told beside the text."""

    def end(self, error: GenerationError | None) -> bool:
        """The reply is complete, or failed with what there is of it. False when that cannot be stored now."""


class Producers:
    """The tasks that run now."""

    def __init__(self, models: ModelServers | None) -> None:
        """`models` is None on a server without model servers."""
        self._models = models
        self._tasks: dict[ProducerKey, asyncio.Task[None]] = {}
        self._is_closed = False

    @property
    def models(self) -> tuple[str, ...]:
        """The model servers that can be asked."""
        return self._models.names if self._models is not None else ()

    @property
    def count(self) -> int:
        """How many run."""
        return len(self._tasks)

    def start(self, key: ProducerKey, upstream: str, body: bytes, sink: Sink) -> None:
        """Ask the model; `upstream` is one of `models`."""
        assert key not in self._tasks, "a generation is started once"
        if self._is_closed:
            # The next start of the server ends the generation.
            return
        task = asyncio.get_running_loop().create_task(self._produce(upstream, body, sink))
        self._tasks[key] = task
        task.add_done_callback(lambda _task: self._tasks.pop(key))

    def stop(self, key: ProducerKey) -> None:
        """Nobody wants the rest. Without effect when it has ended."""
        task = self._tasks.get(key)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Stop all of them, wait until their connections are closed, and start no more."""
        self._is_closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _produce(self, upstream: str, body: bytes, sink: Sink) -> None:
        error: GenerationError | None = None
        try:
            assert self._models is not None, "checked before"
            async with contextlib.aclosing(self._models.stream(upstream, loads(body))) as deltas:
                async for delta in deltas:
                    if delta.text or delta.reasoning:
                        sink.add(delta.text, delta.reasoning)
                    if delta.finish_reason is not None or delta.usage is not None:
                        sink.learn(delta.finish_reason, delta.usage)
        except UpstreamError as failure:
            log.warning("upstream-failed", upstream=upstream, kind=failure.kind, error=str(failure))
            error = GenerationError(failure.code, str(failure))
        except Refused as refusal:
            error = GenerationError(refusal.code, str(refusal))
        except Exception:
            log.exception("producer-failed", upstream=upstream)
            error = GenerationError("internal", "The server failed; the text so far is kept.")
        while not sink.end(error):  # noqa: ASYNC110 -- Nobody tells when the disk has room again.
            await asyncio.sleep(END_AGAIN_S)
