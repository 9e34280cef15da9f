"""What a test means by a long checkpoint interval: no fold while the test runs, neither by debounce nor by event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NEVER_S = 60
"""From this interval on, a test means never."""


def patient(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings`, whose long interval is the debounce too and whose events fold nothing, unless they say otherwise."""
    interval = settings.get("checkpoint_interval_s", 0)
    if interval < NEVER_S:
        return dict(settings)
    return {"checkpoint_debounce_s": interval, "checkpoint_events": (), **settings}


def patient_flags(flags: Sequence[str]) -> tuple[str, ...]:
    """The same for the command line."""
    if "--checkpoint-interval" not in flags:
        return tuple(flags)
    interval = flags[flags.index("--checkpoint-interval") + 1]
    if float(interval) < NEVER_S:
        return tuple(flags)
    more = {"--checkpoint-debounce": interval, "--checkpoint-events": ""}
    return (*flags, *(word for flag, value in more.items() if flag not in flags for word in (flag, value)))
