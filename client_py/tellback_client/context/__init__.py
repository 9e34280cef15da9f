"""The seed's extension API in Python; see `docs/EXTENSION_API.md`."""

from .base import ContextBase
from .context import FRONT_END, Context, FrontEndBusiness, create_context
from .emitter import EventSource, EventTypes
from .floors import FloorState
from .media import ensure_message_media_is_array, get_media_display, get_media_index
from .prompts import ExtensionPrompt
from .states import StateResult
from .swipes import SwipeDirection, Swipes, SwipeState
from .system_messages import SYSTEM_MESSAGE_TYPES
from .views import ChatView, ReadOnlyDict, ReadOnlyList, ReadOnlyViewError

__all__ = [
    "FRONT_END",
    "SYSTEM_MESSAGE_TYPES",
    "ChatView",
    "Context",
    "ContextBase",
    "EventSource",
    "EventTypes",
    "ExtensionPrompt",
    "FloorState",
    "FrontEndBusiness",
    "ReadOnlyDict",
    "ReadOnlyList",
    "ReadOnlyViewError",
    "StateResult",
    "SwipeDirection",
    "SwipeState",
    "Swipes",
    "create_context",
    "ensure_message_media_is_array",
    "get_media_display",
    "get_media_index",
]
