"""tellback's Python client: chats that are stored before they are acknowledged, and told to every tab."""

from __future__ import annotations

from .blocking import BlockingChat, BlockingClient, BlockingState
from .chat import Batch, Chat, State
from .client import Client, connect
from .conflict import Conflict
from .errors import (
    ClientClosed,
    ConflictError,
    ConnectionLost,
    ForbiddenError,
    NotFoundError,
    OutboxCorrupt,
    OutboxError,
    OutboxInUse,
    OutcomeUnknownError,
    ProtocolViolation,
    ReadOnlyError,
    RefusedError,
    SessionTakenOver,
    TellbackError,
    UnauthenticatedError,
)
from .events import Committed, Conflicted, Event, EventsLost, Gone, Replaced, Status, StatusChanged
from .history import HistoryProvider
from .outbox import WriteResult
from .replica import Messages
from .server_process import ServerProcess

__all__ = [
    "Batch",
    "BlockingChat",
    "BlockingClient",
    "BlockingState",
    "Chat",
    "Client",
    "ClientClosed",
    "Committed",
    "Conflict",
    "ConflictError",
    "Conflicted",
    "ConnectionLost",
    "Event",
    "EventsLost",
    "ForbiddenError",
    "Gone",
    "HistoryProvider",
    "Messages",
    "NotFoundError",
    "OutboxCorrupt",
    "OutboxError",
    "OutboxInUse",
    "OutcomeUnknownError",
    "ProtocolViolation",
    "ReadOnlyError",
    "RefusedError",
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
