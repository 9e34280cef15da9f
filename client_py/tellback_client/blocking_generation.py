"""Generations for programs without an event loop: the same, on the client's own loop.

    with chat.generate({"name": "User", "is_user": True, "mes": "And then?"}, reply={"name": "Alice"}) as reply:
        for token in model:
            reply.push(token)

Rules of this module:
- No logic: every method hands one call over and waits for its end.
- A block is never interrupted: that somebody stopped the reply is told by the next `push` (GenerationOver), and ends
  the block in good order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .errors import GenerationOver
from .followed import GenerationResult
from .generation import Delta, Generation
from .producing import Producing

if TYPE_CHECKING:
    from .blocking import BlockingClient

__all__ = ["BlockingGeneration", "BlockingProducing"]


class BlockingGeneration:
    """`Generation`, waiting."""

    def __init__(self, client: BlockingClient, generation: Generation) -> None:
        self._client = client
        self.generation = generation
        """The generation behind this one; it belongs to the other thread."""

    @property
    def id(self) -> str:
        """As `Generation.id`."""
        return self.generation.id

    @property
    def state(self) -> str:
        """As `Generation.state`."""
        return self._client.look(lambda: self.generation.state)

    @property
    def text(self) -> str:
        """As `Generation.text`."""
        return self._client.look(lambda: self.generation.text)

    @property
    def reasoning(self) -> str:
        """As `Generation.reasoning`."""
        return self._client.look(lambda: self.generation.reasoning)

    @property
    def result(self) -> GenerationResult | None:
        """As `Generation.result`."""
        return self._client.look(lambda: self.generation.result)

    def wait(self) -> GenerationResult:
        """As `Generation.wait`."""
        return self._client.wait(self.generation.wait)

    def cancel(self) -> GenerationResult:
        """As `Generation.cancel`."""
        return self._client.wait(self.generation.cancel)

    def deltas(self) -> Iterator[Delta]:
        """As `Generation.deltas`, for a plain `for`."""
        deltas = self.generation.deltas()
        while True:
            try:
                yield self._client.wait(deltas.__anext__)
            except StopAsyncIteration:
                return

    def __iter__(self) -> Iterator[str]:
        """As `async for` over a generation: its text."""
        return (delta.text for delta in self.deltas() if delta.text)


class BlockingProducing:
    """`Producing`, waiting, with a plain `with`."""

    def __init__(self, client: BlockingClient, make: Callable[[], Producing]) -> None:
        self._client = client
        self._make = make
        self.producing: Producing
        """The producer behind this one; there once the block was entered."""

    def __enter__(self) -> BlockingProducing:
        self.producing = self._client.look(self._make)
        self._client.wait(self.producing.begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        is_over = isinstance(error, GenerationOver) and error.generation == self.producing.id
        self._client.wait(lambda: self.producing.leave(None if is_over else error))
        return is_over

    @property
    def generation(self) -> BlockingGeneration:
        """As `Producing.generation`."""
        return BlockingGeneration(self._client, self._client.look(lambda: self.producing.generation))

    @property
    def text(self) -> str:
        """As `Producing.text`."""
        return self._client.look(lambda: self.producing.text)

    @property
    def state(self) -> str:
        """As `Producing.state`."""
        return self._client.look(lambda: self.producing.state)

    @property
    def result(self) -> GenerationResult | None:
        """As `Producing.result`."""
        return self._client.look(lambda: self.producing.result)

    def push(self, piece: str = "", *, reasoning: str = "") -> None:
        """As `Producing.push`."""
        self._client.wait(lambda: self.producing.push(piece, reasoning=reasoning))

    def end(self, reply: Mapping[str, Any] | None = None) -> GenerationResult:
        """As `Producing.end`."""
        return self._client.wait(lambda: self.producing.end(reply))

    def fail(
        self, message: str, *, code: str = "failed", reply: Mapping[str, Any] | None = None
    ) -> GenerationResult:
        """As `Producing.fail`."""
        return self._client.wait(lambda: self.producing.fail(message, code=code, reply=reply))
