"""Extension prompts: texts that extensions put into the prompt, in memory, for as long as the context shows a chat.

Rules of this module:
- Nothing here is stored or told to others: a prompt belongs to the tab that builds it (the seed).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

import msgspec

POSITIONS = {0: "after the story string", 1: "in the chat at `depth`", 2: "after the chat"}
ROLES = {0: "system", 1: "user", 2: "assistant"}


class ExtensionPrompt(msgspec.Struct, frozen=True):
    """One text."""

    value: str
    position: int
    depth: int
    """From the end of the chat; 0 is behind the last message."""
    scan: bool = False
    """Whether the text takes part in the World Info scan."""
    role: int = 0
    filter: Callable[[], bool | Awaitable[bool]] | None = None
    """Whoever builds the prompt skips the text when this gives something false."""


class ExtensionPrompts:
    """Texts by key."""

    def __init__(self) -> None:
        self._prompts: dict[str, ExtensionPrompt] = {}

    @property
    def view(self) -> Mapping[str, ExtensionPrompt]:
        """The texts now, not to be changed here."""
        return MappingProxyType(self._prompts)

    def set(self, key: str, prompt: ExtensionPrompt) -> None:
        """Put a text under a key in place of what was there; an empty text takes it away. Raises: ValueError."""
        if prompt.position not in POSITIONS:
            raise ValueError(f"position is one of {POSITIONS}")
        if prompt.role not in ROLES:
            raise ValueError(f"role is one of {ROLES}")
        if isinstance(prompt.depth, bool) or not isinstance(prompt.depth, int) or prompt.depth < 0:
            raise ValueError("depth is an integer that is not negative")
        if prompt.value:
            self._prompts[key] = prompt
        else:
            self._prompts.pop(key, None)

    def clear(self) -> None:
        """Take all away."""
        self._prompts = {}
