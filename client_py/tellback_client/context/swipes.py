"""Swipes of the shown chat: which alternative of a message is shown.

Rules of this module:
- Without a message named, the last one of the chat is meant.
- Left of the first swipe is the last one. Right of the last one is nothing: a front end would generate there, so
  `right` refuses by returning False; only the greeting, the first and only message of a chat, begins again.
- Buttons are a front end's: `show`, `hide` and `refresh` keep the wish that it reads from `visible`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from tellback_protocol.swipes import active, count

from ..errors import refused
from ..intents import SwipeIntent
from .base import Held
from .messages import Key, MessagesOfContext


class SwipeDirection(StrEnum):
    """Where to."""

    LEFT = "left"
    RIGHT = "right"


class SwipeState(StrEnum):
    """What is going on."""

    NONE = "none"
    SWIPING = "swiping"
    """A swipe is on its way to the server."""


class Swipes:
    """The seed's `context.swipe`."""

    def __init__(self, context: SwipesOfContext) -> None:
        self._context = context
        self._moving = 0
        self.visible = True
        """Whether a front end shows the buttons."""
        self.counters_visible = True

    async def left(self, event: object = None, **options: Any) -> bool:
        """Show the swipe before; from the first one the last. False when there is no other."""
        return await self.to(event, SwipeDirection.LEFT, **options)

    async def right(self, event: object = None, **options: Any) -> bool:
        """Show the next swipe. False when the last one is shown and it is not the greeting."""
        return await self.to(event, SwipeDirection.RIGHT, **options)

    async def to(
        self,
        event: object = None,
        direction: str = SwipeDirection.RIGHT,
        *,
        force_mes_id: Key | None = None,
        force_swipe_id: int | None = None,
        force_duration: float | None = None,
    ) -> bool:
        """Show another swipe of the last message, or of `force_mes_id`; `force_swipe_id` names it by its ordinal.

        `event` and `force_duration` belong to animations and do nothing. Returns whether another swipe is shown now.
        Raises: RefusedError for a message or swipe that is not there, ConflictError.
        """
        way = SwipeDirection(direction)
        held = self._context._current()
        message_id, shown, total, greeting = self._context._swipes_of(held, force_mes_id)
        if force_swipe_id is not None:
            if isinstance(force_swipe_id, bool) or not 0 <= force_swipe_id < total:
                raise refused("swipe-unknown", f"There is no swipe {force_swipe_id}; the message has {total}.")
            target = force_swipe_id
        elif way is SwipeDirection.LEFT:
            target = shown - 1 if shown > 0 else total - 1
        elif shown + 1 < total:
            target = shown + 1
        else:
            target = 0 if greeting else shown
        if target == shown:
            return False
        self._moving += 1
        try:
            await self._context._select_swipe(held, message_id, target)
        finally:
            self._moving -= 1
        return True

    def is_allowed(self) -> bool:
        """True when a chat with a message is shown, it can be written, no swipe is on its way, and no reply is being
        written there.
        """
        held = self._context._held
        return (
            held is not None and self._context.get_message_count() > 0 and not held.chat.subscription.read_only
            and self._moving == 0 and not held.chat.subscription.generations.running
        )

    def state(self) -> SwipeState:
        """What is going on."""
        return SwipeState.SWIPING if self._moving else SwipeState.NONE

    def show(self) -> None:
        """Let a front end show the buttons."""
        self.visible = True

    def hide(self, *, hide_counters: bool = False) -> None:
        """Let a front end hide the buttons, and the counters too."""
        self.visible = False
        self.counters_visible = not hide_counters

    def refresh(self, update_counters: bool = False, fade: bool = True) -> None:
        """Nothing here: whoever draws reads `chat`, `visible` and `counters_visible`."""


class SwipesOfContext(MessagesOfContext):
    """`swipe`, and how a swipe is selected."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.swipe = Swipes(self)

    def _swipes_of(self, held: Held, key: Key | None) -> tuple[str, int, int, bool]:
        """Id of a message, which swipe it shows, how many it has, and whether it is the greeting."""
        document = self._document(held)
        total = len(document.messages)
        message_id = self._known(document, total - 1 if key is None else key, "/message")
        message = document.value(message_id)
        return message_id, active(message), count(message), total == 1 and message.get("is_user") is not True

    async def _select_swipe(self, held: Held, message_id: str, swipe: int) -> None:
        await self._write(held, SwipeIntent(message_id, "select", swipe=swipe))
