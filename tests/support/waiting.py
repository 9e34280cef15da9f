"""How a test waits for what nobody announces, and how long before it says that it never came.

A wait has a condition and ends with it. Its limit only keeps a broken program from hanging the run, so it is far
beyond what the slowest machine takes.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

GUARD_S = 45.0
"""Less than pytest's own limit, so that what failed is what was waited for."""
LOOK_AFTER_S, LOOK_EVERY_S = 0.005, 0.05


async def until(is_so: Callable[[], object | Awaitable[object]], timeout_s: float = GUARD_S) -> None:
    """Ask again and again until the answer is true; one that has to be awaited is."""
    pause_s = LOOK_AFTER_S
    async with asyncio.timeout(timeout_s):
        while True:
            found = is_so()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(LOOK_EVERY_S, pause_s * 1.2)
