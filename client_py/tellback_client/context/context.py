"""The seed's extension API: one object with all its names, in snake_case, on top of a client.

    async with connect("ws://127.0.0.1:8765/ws") as client:
        async with await create_context(client, chat="character:Alice/First meeting") as context:
            context.event_source.on(EventTypes.MESSAGE_RECEIVED, lambda index: print(context.chat[index]["mes"]))
            await context.add_messages({"name": "User", "is_user": True, "mes": "hi"})

`docs/EXTENSION_API.md` lists every name of the seed and what became of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..client import Client
from ..intents import difference
from .base import ContextBase
from .deprecated import DeprecatedOfContext
from .floors import FloorsOfContext
from .lives import LivesOfContext
from .media import ensure_message_media_is_array, get_media_display, get_media_index
from .messages import MessagesOfContext
from .metadata import MetadataOfContext
from .prompts import ExtensionPrompt, ExtensionPrompts
from .states import StatesOfContext
from .swipes import SwipesOfContext


class FrontEndBusiness(AttributeError):
    """A name of the seed that only draws; `hasattr` is false for it."""


class Context(
    DeprecatedOfContext, LivesOfContext, SwipesOfContext, FloorsOfContext, MetadataOfContext, StatesOfContext,
    MessagesOfContext, ContextBase,
):
    """What an extension holds. Made by `create_context`; belongs to the event loop of its client."""

    ensure_message_media_is_array = staticmethod(ensure_message_media_is_array)
    get_media_display = staticmethod(get_media_display)
    get_media_index = staticmethod(get_media_index)

    @staticmethod
    def build_object_patch_operations(before: Any, after: Any) -> list[dict[str, Any]]:
        """RFC 6902 operations from one JSON value to another; none when they are equal."""
        return difference(before, after)

    def __init__(self, client: Client, *, name1: str = "User") -> None:
        super().__init__(client, name1=name1)
        self._prompts = ExtensionPrompts()

    @property
    def name1(self) -> str:
        """The user's name, as it was given to the context."""
        return self._name1

    @property
    def online_status(self) -> str:
        """The connection to the server: `connected`, `connecting`, `offline` or `closed`."""
        return self.client.status

    # -- extension prompts -------------------------------------------------------------------------------------------

    @property
    def extension_prompts(self) -> Mapping[str, ExtensionPrompt]:
        """The texts set by `set_extension_prompt`, read-only."""
        return self._prompts.view

    def set_extension_prompt(
        self,
        key: str,
        value: str,
        position: int,
        depth: int,
        scan: bool = False,
        role: int = 0,
        filter: Callable[[], bool | Awaitable[bool]] | None = None,
    ) -> None:
        """Put a text into the prompt, in this context's memory; an empty one takes it away. Raises: ValueError."""
        self._prompts.set(key, ExtensionPrompt(value, position, depth, scan, role, filter))

    async def clear_chat(self, *, clear_data: bool = False) -> None:
        """Forget the extension prompts; with `clear_data` also show no message until a chat is read again.

        What is stored stays stored: nothing is deleted here.
        """
        self._prompts.clear()
        if clear_data:
            self._shown = False

    async def _show(self, address: str | None, *, create: bool = False) -> None:
        await super()._show(address, create=create)
        self._prompts.clear()

    # -- what a front end draws --------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name in FRONT_END:
            raise FrontEndBusiness(f"{name}() draws, and tellback has no page to draw on: {FRONT_END[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


FRONT_END = {
    "print_messages": "draw `context.chat` when CHAT_CHANGED tells",
    "append_media_to_message": "draw `message.extra.media`, after ensure_message_media_is_array()",
    "scroll_chat_to_bottom": "scroll where the messages are drawn",
    "scroll_on_media_load": "scroll where the media are drawn",
}
"""Names of the seed that only draw, and what a front end does instead."""


async def create_context(
    client: Client,
    *,
    chat: str | None = None,
    character: str | None = None,
    group: str | None = None,
    name1: str = "User",
) -> Context:
    """A context that shows a chat: `chat` by its address, or the active one of a `character` or of a `group` (by id).

    Without any of them it shows none. Raises: what opening raises.
    """
    if sum(one is not None for one in (chat, character, group)) > 1:
        raise ValueError("a context begins with a chat, a character or a group: name one")
    context = Context(client, name1=name1)
    context.start()
    try:
        await context.refresh()
        if chat is not None:
            await context.open_chat(chat)
        elif character is not None:
            await context.select_character(character)
        elif group is not None:
            await context.select_group(group)
    except BaseException:
        await context.aclose()
        raise
    return context
