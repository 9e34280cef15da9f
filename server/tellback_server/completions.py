"""Chat completions as OpenAI-compatible servers stream them: the data of an event in, a Delta out.

Rules this module keeps:

- Pure: no clock, no sockets.
- The reply is choice 0. Text and reasoning are kept apart, under whatever name a server sends the reasoning.
- What comes out can be stored and sent: halves of a surrogate pair that came in two chunks are joined, and a half that
  stays alone, like a byte that is no UTF-8, is U+FFFD. No other character is changed, merged or dropped.
- An error inside the stream is an error, never text.

Errors:

    CompletionError         what the server said instead of a reply
        ErrorInside         an error object; has status (None when it names none) and message
        NotACompletion      not JSON, or JSON of another shape
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import orjson

from tellback_server.sse import SseEvent

__all__ = ["CompletionError", "CompletionReader", "Delta", "ErrorInside", "NotACompletion", "error_in"]

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_DONE: Final = b"[DONE]"
_REASONING_FIELDS: Final = ("reasoning_content", "reasoning")
"""DeepSeek, llama.cpp and vLLM; OpenRouter and newer vLLM. Who sends both sends the same in both."""


class CompletionError(Exception):
    """What a model server sent is no part of a reply."""


class ErrorInside(CompletionError):
    """The server reported an error inside its answer. `message` is what it wrote, as it wrote it."""

    def __init__(self, status: int | None, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


class NotACompletion(CompletionError):
    """The data is not JSON, or not a chat completion."""


class Delta(msgspec.Struct, frozen=True):
    """A piece of a reply. At least one field is set."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    """Why the model stopped ("stop", "length", ...); in one of the last deltas, or never."""
    usage: dict[str, Any] | None = None
    """What the server counted, as it said; usually in the last delta and only when the body asked for it."""


class CompletionReader:
    """Reads the events of one reply, in their order."""

    def __init__(self) -> None:
        self.has_begun = False
        """Set by the first text or reasoning."""
        self.is_done = False
        """Set by `[DONE]`: nothing more is said."""
        self.has_finished = False
        """Set by `[DONE]` or a finish reason: the reply is whole, and usage may still follow."""
        # The first half of a surrogate pair whose second half is expected in the next chunk.
        self._held_text = ""
        self._held_reasoning = ""

    def read(self, event: SseEvent) -> Delta | None:
        """What `event` adds to the reply; None when nothing. Raises: CompletionError."""
        if event.data.strip() == _DONE:
            self.is_done = self.has_finished = True
            return None
        value = _parsed(event.data)
        if not isinstance(value, dict):
            raise NotACompletion
        error = error_in(value)
        if error is None and event.kind == "error":
            error = ErrorInside(None, _error_text(value))
        if error is not None:
            raise error
        choices = value.get("choices")
        usage = value.get("usage")
        if not isinstance(choices, list):
            if isinstance(usage, dict):
                return Delta(usage=usage)
            raise NotACompletion
        return self._delta(choices, usage if isinstance(usage, dict) and usage else None)

    def rest(self) -> Delta | None:
        """What was held back when the stream ended."""
        text, self._held_text = "\ufffd" if self._held_text else "", ""
        reasoning, self._held_reasoning = "\ufffd" if self._held_reasoning else "", ""
        return Delta(text, reasoning) if text or reasoning else None

    def _delta(self, choices: list[Any], usage: dict[str, Any] | None) -> Delta | None:
        choice = _choice(choices)
        # A server that does not stream sends the whole message under `message`.
        piece = choice.get("delta", choice.get("message"))
        text, reasoning = _pieces(piece) if isinstance(piece, dict) else ("", "")
        finish_reason = choice.get("finish_reason")
        if finish_reason == "error":
            raise ErrorInside(None, _error_text(choice))
        if not isinstance(finish_reason, str) or not finish_reason:
            finish_reason = None
        else:
            self.has_finished = True
        self.has_begun = self.has_begun or bool(text or reasoning)
        if text:
            text, self._held_text = _whole(self._held_text + text)
        if reasoning:
            reasoning, self._held_reasoning = _whole(self._held_reasoning + reasoning)
        if text or reasoning or finish_reason is not None or usage is not None:
            return Delta(text, reasoning, finish_reason, usage)
        return None


def error_in(value: Mapping[str, Any]) -> ErrorInside | None:
    """The error that a JSON object of a model server reports; None when it reports none."""
    error = value.get("error")
    if not error and value.get("object") == "error":
        error = value
    if not error:
        return None
    named = [_status(error.get(name)) for name in ("code", "status")] if isinstance(error, dict) else []
    return ErrorInside(next(filter(None, named), None), _error_text(value))


def _error_text(value: Mapping[str, Any]) -> str:
    """The sentence of an error object, wherever servers put it; empty when there is none."""
    for name in ("error", "message", "detail", "msg"):
        found = value.get(name)
        if isinstance(found, str) and found:
            return found
        if isinstance(found, dict):
            return _error_text(found)
    return ""


def _status(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) == 3:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599 else None


def _choice(choices: list[Any]) -> Mapping[str, Any]:
    for choice in choices:
        if isinstance(choice, dict) and choice.get("index", 0) in (0, None):
            return choice
    return {}


def _pieces(piece: Mapping[str, Any]) -> tuple[str, str]:
    """Text and reasoning of a `delta` or `message`."""
    content = piece.get("content")
    text, reasoning = ("", "")
    if isinstance(content, str):
        text = content
    elif isinstance(content, list):
        text, reasoning = _parts(content)
    refusal = piece.get("refusal")
    if not text and isinstance(refusal, str):
        # OpenAI's models decline in a field of its own; it is what the model answered.
        text = refusal
    for name in _REASONING_FIELDS:
        found = piece.get(name)
        if isinstance(found, str) and found:
            return text, reasoning + found
    return text, reasoning


def _parts(content: list[Any]) -> tuple[str, str]:
    """Text and reasoning of content in parts (Mistral): {"type":"text"} and {"type":"thinking"}."""
    text, reasoning = "", ""
    for part in content:
        if not isinstance(part, dict):
            continue
        if isinstance(part.get("text"), str):
            text += part["text"]
        thinking = part.get("thinking")
        if isinstance(thinking, str):
            reasoning += thinking
        elif isinstance(thinking, list):
            reasoning += _parts(thinking)[0]
    return text, reasoning


def _whole(text: str) -> tuple[str, str]:
    """`text` without half characters, and the half at its end that the next chunk may complete."""
    if text.isascii() or not _SURROGATE.search(text):
        return text, ""
    held = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
    text = text[:-1] if held else text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"), held


def _parsed(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except ValueError:
        pass
    # What orjson refuses and the standard library reads: half a surrogate pair in an escape. Bytes that are no UTF-8
    # are one character of a long reply, and no reason to lose it.
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise NotACompletion from None
