"""Waiting until a chat here holds everything that the server holds: what reading needs to see others' finished writes.

Rules of this module:
- The server says where the chat ends; nobody guesses by time.
"""

from __future__ import annotations

from msgspec import UnsetType

from .chat import Chat


async def caught_up(chat: Chat) -> None:
    """Wait until the chat holds every commit that was stored when this was called. One question when it does already.

    Raises: what ended the chat. Waits as long as there is no connection.
    """
    while True:
        page = await chat.history(after=chat.head.seq, limit=1)
        if isinstance(page.commits, UnsetType) or not page.commits:
            return
        await reached(chat, page.commits[-1].version.seq)


async def reached(chat: Chat, seq: int) -> None:
    """Wait until the chat holds the commit `seq`. Raises: what ended the chat."""
    # They end with the chat and with the client; the status tells of neither while a conflict waits.
    events = chat.events()
    while chat.subscription.error is None and chat.head.seq < seq:
        await anext(events, None)
    if chat.subscription.error is not None:
        raise chat.subscription.error
