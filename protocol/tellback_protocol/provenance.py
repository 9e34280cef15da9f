"""What is known of how a reply was made, as SillyTavern writes it beside the text.

    {"mes": ..., "send_date": ..., "gen_started": ..., "gen_finished": ...,
     "extra": {"api": ..., "model": ..., "token_count": ..., "reasoning": ..., "reasoning_duration": ms}}

Rules of this module (BEHAVIOUR T21, T22):
- What a client says of its reply leads; the server fills in what nobody said, and only what it knows.
- A message that SillyTavern would not have made (it has `content`, not `mes`) gets no times.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import orjson

from .errors import Refused
from .moments import utc_text
from .values import read_payload

USAGE_BYTES_MAX: Final = 2048
"""What a model server counted is kept up to this size."""
FINISH_REASON_CHARS_MAX: Final = 64
MODEL_CHARS_MAX: Final = 256
_SUMMED: Final = ("token_count", "reasoning_duration")
"""What of a continuation adds to what was there."""


class Provenance(msgspec.Struct, gc=False):
    """What was learned while the text came. None: not known."""

    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    reasoning_ms: int | None = None
    """From the start to the first text behind the reasoning."""

    def learn(self, finish_reason: str | None, usage: dict[str, Any] | None) -> None:
        """What a model server told at the end. What cannot stand in a message is left out."""
        if finish_reason is not None and finish_reason.isascii() and len(finish_reason) <= FINISH_REASON_CHARS_MAX:
            self.finish_reason = finish_reason
        if usage is not None:
            self.usage = _storable(usage)

    def members(self, api: str | None, model: str | None, reasoning: str) -> dict[str, Any]:
        """The members of `extra`."""
        found: dict[str, Any] = {"api": api, "model": model}
        if reasoning:
            found |= {"reasoning": reasoning, "reasoning_type": "model", "reasoning_duration": self.reasoning_ms}
        if self.usage is not None:
            # As SillyTavern counts: the reasoning is part of it.
            found["token_count"] = _whole_number(self.usage.get("completion_tokens"))
        found |= {"finish_reason": self.finish_reason, "usage": self.usage}
        return {key: value for key, value in found.items() if value is not None}


def _storable(usage: dict[str, Any]) -> dict[str, Any] | None:
    """What a model server counted, if it is what the wire takes."""
    try:
        data = orjson.dumps(usage)
        return read_payload(data, "") if len(data) <= USAGE_BYTES_MAX else None
    except (TypeError, Refused):
        return None


def _whole_number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def model_of(body: dict[str, Any]) -> str | None:
    """The model that a request to a model server names, if it can be told."""
    model = body.get("model")
    return model if isinstance(model, str) and 0 < len(model) <= MODEL_CHARS_MAX else None


def times(started_ms: int, ended_ms: int) -> dict[str, str]:
    """The members of a message that tell when it was made."""
    ended = utc_text(ended_ms)
    return {"send_date": ended, "gen_started": utc_text(started_ms), "gen_finished": ended}


def continued(before: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The `extra` of a text that was gone on with."""
    merged = {**before, **new}
    for key in _SUMMED:
        one, other = _whole_number(before.get(key)), _whole_number(new.get(key))
        if one is not None and other is not None:
            merged[key] = one + other
    if isinstance(before.get("reasoning"), str) and isinstance(new.get("reasoning"), str):
        merged["reasoning"] = before["reasoning"] + new["reasoning"]
    return merged
