"""tellback's Python client: chats that are stored before they are acknowledged, and told to every tab.

Names are loaded when they are first used: pytest imports this package in every run of every project that has it
installed, for the fixture in `pytest_plugin`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tellback_protocol.catalog_frames import Character, FoundMessage, ListedChat

    from .blocking import BlockingChat, BlockingClient, BlockingFloorState, BlockingOwner, BlockingState
    from .blocking_generation import BlockingGeneration, BlockingProducing
    from .catalog import Pages
    from .chat import Batch, Chat, State
    from .client import Client, connect
    from .conflict import Conflict
    from .errors import (
        ClientClosed,
        ConflictError,
        ConnectionLost,
        DeletedError,
        ForbiddenError,
        GenerationOver,
        NotFoundError,
        OutboxCorrupt,
        OutboxError,
        OutboxInUse,
        OutcomeUnknownError,
        ProtocolViolation,
        ReadOnlyError,
        RefusedError,
        RenamedError,
        SessionTakenOver,
        TellbackError,
        UnauthenticatedError,
    )
    from .events import (
        ChatDeleted,
        ChatRenamed,
        Committed,
        Conflicted,
        ConnectionChanged,
        Event,
        EventsLost,
        GenerationEnded,
        GenerationStarted,
        Gone,
        Replaced,
        Status,
        StatusChanged,
    )
    from .floors import FloorState
    from .followed import GenerationResult
    from .generation import Delta, Generation
    from .history import HistoryProvider
    from .outbox import WriteResult
    from .owner import Owner
    from .producing import Producing
    from .replica import Messages
    from .server_process import ServerProcess

__all__ = [
    "Batch",
    "BlockingChat",
    "BlockingClient",
    "BlockingFloorState",
    "BlockingGeneration",
    "BlockingOwner",
    "BlockingProducing",
    "BlockingState",
    "Character",
    "Chat",
    "ChatDeleted",
    "ChatRenamed",
    "Client",
    "ClientClosed",
    "Committed",
    "Conflict",
    "ConflictError",
    "Conflicted",
    "ConnectionChanged",
    "ConnectionLost",
    "DeletedError",
    "Delta",
    "Event",
    "EventsLost",
    "FloorState",
    "ForbiddenError",
    "FoundMessage",
    "Generation",
    "GenerationEnded",
    "GenerationOver",
    "GenerationResult",
    "GenerationStarted",
    "Gone",
    "HistoryProvider",
    "ListedChat",
    "Messages",
    "NotFoundError",
    "OutboxCorrupt",
    "OutboxError",
    "OutboxInUse",
    "OutcomeUnknownError",
    "Owner",
    "Pages",
    "Producing",
    "ProtocolViolation",
    "ReadOnlyError",
    "RefusedError",
    "RenamedError",
    "Replaced",
    "ServerProcess",
    "SessionTakenOver",
    "State",
    "Status",
    "StatusChanged",
    "TellbackError",
    "UnauthenticatedError",
    "WriteResult",
    "connect",
]

_HOMES = {
    "blocking": ("BlockingChat", "BlockingClient", "BlockingFloorState", "BlockingOwner", "BlockingState"),
    "blocking_generation": ("BlockingGeneration", "BlockingProducing"),
    "catalog": ("Character", "FoundMessage", "ListedChat", "Pages"),
    "chat": ("Batch", "Chat", "State"),
    "client": ("Client", "connect"),
    "conflict": ("Conflict",),
    "errors": (
        "ClientClosed", "ConflictError", "ConnectionLost", "DeletedError", "ForbiddenError", "GenerationOver",
        "NotFoundError",
        "OutboxCorrupt", "OutboxError", "OutboxInUse", "OutcomeUnknownError", "ProtocolViolation", "ReadOnlyError",
        "RefusedError", "RenamedError", "SessionTakenOver", "TellbackError", "UnauthenticatedError",
    ),
    "events": (
        "ChatDeleted", "ChatRenamed", "Committed", "Conflicted", "ConnectionChanged", "Event", "EventsLost",
        "GenerationEnded", "GenerationStarted", "Gone", "Replaced", "Status", "StatusChanged",
    ),
    "floors": ("FloorState",),
    "followed": ("GenerationResult",),
    "generation": ("Delta", "Generation"),
    "history": ("HistoryProvider",),
    "outbox": ("WriteResult",),
    "owner": ("Owner",),
    "producing": ("Producing",),
    "replica": ("Messages",),
    "server_process": ("ServerProcess",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return value
