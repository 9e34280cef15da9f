"""The metadata of the shown chat."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..errors import ClientClosed, ConflictError, ConnectionLost, TellbackError
from .base import ContextBase
from .merges import AssignMetadataIntent
from .views import ReadOnlyDict, freeze

logger = logging.getLogger("tellback_client.context")


class MetadataOfContext(ContextBase):
    """The verbs of metadata."""

    @property
    def chat_metadata(self) -> ReadOnlyDict:
        """The metadata of the shown chat, read-only; empty when none is shown."""
        value = self._held.chat.metadata if self._held is not None else {}
        return ReadOnlyDict(freeze(value if isinstance(value, dict) else {}))

    async def save_chat_metadata(self, with_metadata: Mapping[str, Any] | None = None) -> bool:
        """Put members into the metadata, each in place of the whole old one; without any, wait for the own writes.

        True when they are; False, with the reason in the log, when the server refused or somebody else changed the
        same members meanwhile. Raises: ConnectionLost, ClientClosed.
        """
        held = self._current()
        try:
            if with_metadata:
                await held.chat.write(AssignMetadataIntent(with_metadata))
            else:
                await held.chat.saved()
        except (ConnectionLost, ClientClosed):
            raise
        except TellbackError as error:
            if isinstance(error, ConflictError):
                # False is all that the caller is told; nobody would ever take an exit.
                error.conflict.take_theirs()
            logger.warning("the metadata of %s were not saved: %s", held.address, error)
            return False
        return True
