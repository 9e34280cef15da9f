"""The life of chats: made, renamed, removed, restored, branched.

    chat = await client.create_chat("character:Alice/New", messages=[{"mes": "Hello."}])
    await chat.rename("Better name")
    branch = await chat.branch(message_id)
    await chat.remove()                          to the trash; client.restore_chat(chat_id) brings it back

Rules of this module:
- What concerns an open chat goes through its lane, in order with its other writes, and survives a lost connection.
- A chat that somebody renamed stays open under its new name; of one that somebody removed, the handle ends with
  DeletedError, and own writes without an answer become conflicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import UNSET, Raw

from tellback_protocol.backups import BackupRestore
from tellback_protocol.effects import Effect
from tellback_protocol.frames import Ack
from tellback_protocol.ids import WIRE_INTEGER_MAX
from tellback_protocol.links import is_all
from tellback_protocol.requests import (
    ChatBranch,
    ChatCreate,
    ChatDelete,
    ChatRename,
    ChatRestore,
    History,
    OwnerDelete,
    OwnerName,
    OwnerRename,
    OwnerRestore,
)

from .asking import Asking
from .errors import DeletedError, RefusedError, refused
from .intents import Intent, View
from .outbox import WriteResult
from .own_write import LiveWrite
from .payload import payload

if TYPE_CHECKING:
    from .chat import Chat
    from .link import Link
    from .owner import Owner

__all__ = ["LifeIntent", "Lives", "LivingChat"]

RESTORES_MAX = 8
"""How often the number of a restore is asked for anew, when others of this session came between."""


class LifeIntent:
    """A wish about an open chat as a whole. Asked once: what others did meanwhile is for a person to judge."""

    def __init__(self, write: LiveWrite) -> None:
        self.write = write

    def parts(self, view: View) -> list[LiveWrite]:
        return [self.write]

    def repeatable(self, view: View, missed: Sequence[Effect] | None) -> bool:
        if isinstance(self.write, ChatDelete):
            # A link that followed another chat's rename is nothing that anybody wrote.
            return missed is not None and is_all(missed)
        # A branch begins at its message, whatever was done to others.
        return isinstance(self.write, ChatBranch) and self.write.message in view().chat.messages


class _Lived(Protocol):
    """What a chat has, besides."""

    _client: Any

    async def write(self, intent: Intent) -> WriteResult: ...


class LivingChat:
    """The part of `Chat` that concerns it as a whole. Raises: as `Chat.write`."""

    async def rename(self: _Lived, to: str) -> WriteResult:
        """Give the chat another name (the name alone); its state goes along. Raises RefusedError `exists`,
        `name-illegal`.
        """
        return await self.write(LifeIntent(ChatRename("", to)))

    async def remove(self: _Lived, *, force: bool = False) -> WriteResult:
        """Put the chat into the trash, with all its state; afterwards this handle is over.

        `linked_from` of the result names chats that link to it. Raises ConflictError when somebody changed the chat
        meanwhile; `force` removes it all the same.
        """
        return await self.write(LifeIntent(ChatDelete("", force=force)))

    async def branch(
        self: _Lived, message_id: str, *, to: str | None = None, kind: Literal["branch", "checkpoint"] = "branch",
        swipe: int | None = None,
    ) -> Chat:
        """A new chat with everything up to and with a message, opened; the message gets a link to it."""
        write = ChatBranch(
            "", message_id, UNSET if to is None else to, kind, UNSET if swipe is None else swipe
        )
        result = await self.write(LifeIntent(write))
        assert result.branch is not None, "the ack of a branch tells what it made"
        chat: Chat = await self._client.open(result.branch.chat)
        return chat


    async def restore_backup(self: _Lived, backup: str) -> WriteResult:
        """Put the chat back as a backup holds it; what there is now is backed up first. Everybody who has it open is
        told `Replaced`. Raises ConflictError when somebody changed the chat meanwhile; RefusedError `backup-unknown`,
        `backup-damaged`.
        """
        return await self.write(LifeIntent(BackupRestore("", backup)))

    async def restore_backup_as(self: _Lived, backup: str, to: str) -> Chat:
        """A new chat of this name, beside this one, of what a backup holds; opened. Raises RefusedError `exists`."""
        result = await self.write(LifeIntent(BackupRestore("", backup, to)))
        assert result.branch is not None, "the ack tells what it made"
        chat: Chat = await self._client.open(result.branch.chat)
        return chat


class _Client(Protocol):
    """What a client has, besides."""

    def _started(self) -> Link: ...

    def stepped(self) -> None: ...

    async def open(self, name: str, *, create: bool = False) -> Chat: ...

    async def character(self, name: str) -> Owner: ...

    async def preset(self, name: str) -> Owner: ...

    async def _ask(self, request: Any) -> Any: ...

    async def _restore_owner(self, owner: OwnerName) -> None: ...

    async def _out_of_trash(
        self, chat_id: str, request: Callable[[int], ChatRestore | BackupRestore]
    ) -> Chat: ...


async def _rename(owner: Owner, to: str) -> None:
    try:
        await owner.write(LifeIntent(OwnerRename(OwnerName(), to)))
    finally:
        owner.holders -= 1


async def _delete(owner: Owner, chats: bool) -> None:
    try:
        await owner.write(LifeIntent(OwnerDelete(OwnerName(), chats)))
    finally:
        owner.holders -= 1


class Lives(Asking):
    """The part of `Client` that makes chats and brings them back."""

    async def create_chat(
        self: _Client, name: str, *, metadata: Mapping[str, Any] | None = None,
        messages: Sequence[Mapping[str, Any]] = (), group: str | None = None,
    ) -> Chat:
        """Make a chat that is not there, and open it. `group` is the id of the group that a group chat belongs to.

        Raises: RefusedError `exists`, `name-illegal`; DeletedError when a chat of that name is in the trash and another
        one links to it.
        """
        ack = await self._ask(ChatCreate(
            name, UNSET if metadata is None else Raw(payload(dict(metadata), "/metadata")),
            [Raw(payload(dict(message), f"/messages/{index}")) for index, message in enumerate(messages)],
            UNSET if group is None else group, op=1,
        ))
        if isinstance(ack, Ack) and ack.duplicate is True:
            # Not this call's doing: this session made the same chat before.
            raise refused("exists", f"{name!r} exists: this session made it before.", pointer="/chat")
        return await self.open(name)

    async def restore_chat(self: _Client, chat_id: str, to: str | None = None) -> Chat:
        """Bring a chat back from the trash, under `to` when its old name is taken, and open it.

        Raises: NotFoundError, RefusedError `exists`.
        """
        return await self._out_of_trash(chat_id, lambda number: ChatRestore(
            f"id:{chat_id}", UNSET if to is None else to, op=number
        ))

    async def restore_deleted(self: _Client, chat_id: str, backup: str, to: str | None = None) -> Chat:
        """As `restore_chat`, of a backup, whatever the trash holds of the chat.

        Raises: NotFoundError, RefusedError `exists`, `backup-unknown`, `backup-damaged`.
        """
        return await self._out_of_trash(chat_id, lambda number: BackupRestore(
            f"id:{chat_id}", backup, UNSET if to is None else to, op=number
        ))

    async def _out_of_trash(
        self: _Client, chat_id: str, request: Callable[[int], ChatRestore | BackupRestore]
    ) -> Chat:
        address = f"id:{chat_id}"
        for _try in range(RESTORES_MAX):
            try:
                await self._ask(History(address, limit=1))
            except DeletedError as error:
                if error.next_op is None:
                    raise
                number = error.next_op
            else:
                raise refused("exists", "The chat is not in the trash.", pointer="/chat")
            try:
                await self._ask(request(number))
            except RefusedError as error:
                if error.code == "op-mismatch":
                    continue
                raise
            return await self.open(address)
        raise refused("overloaded", "This session writes to the chat at the same time.", retry="backoff")

    async def rename_character(self: _Client, name: str, to: str) -> None:
        """Give a character another name: its state, its chats and the groups that it is in go along. The card keeps the
        display name that it holds. Raises: NotFoundError, RefusedError `exists`, `name-illegal`.
        """
        await _rename(await self.character(name), to)

    async def delete_character(self: _Client, name: str, *, chats: bool = False) -> None:
        """Put a character with its state into the trash, and with `chats` its chats. Raises: NotFoundError."""
        await _delete(await self.character(name), chats)

    async def restore_character(self: _Client, name: str) -> None:
        """Bring back what was deleted last under this name. Raises: NotFoundError, RefusedError `exists`."""
        await self._restore_owner(OwnerName(character=name))

    async def rename_preset(self: _Client, name: str, to: str) -> None:
        """Give a preset (`<folder>/<preset>`) another name (the name alone), with its state. Raises: as above."""
        await _rename(await self.preset(name), to)

    async def delete_preset(self: _Client, name: str) -> None:
        """Put a preset with its state into the trash. Raises: NotFoundError."""
        await _delete(await self.preset(name), False)

    async def restore_preset(self: _Client, name: str) -> None:
        """Bring back what was deleted last under this name. Raises: NotFoundError, RefusedError `exists`."""
        await self._restore_owner(OwnerName(preset=name))

    async def _restore_owner(self: _Client, owner: OwnerName) -> None:
        number = WIRE_INTEGER_MAX
        for _try in range(RESTORES_MAX):
            try:
                await self._ask(OwnerRestore(owner, op=number))
                return
            except RefusedError as error:
                if error.code != "op-gap" or error.expected is None:
                    raise
                # Which number comes next is known to the server alone.
                number = error.expected
        raise refused("overloaded", "This session writes to it at the same time.", retry="backoff")
