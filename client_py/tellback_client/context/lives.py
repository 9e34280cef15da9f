"""Which chat is shown, and the life of chats: made, listed, opened, renamed, deleted.

Rules of this module:
- Showing another chat is one step after the other, never two at once; when it fails, what was shown stays.
- The lists of characters and groups are as they were read last: when the context began, at every `refresh`, and
  whenever this module changes what they hold.
- Names of chats are without `.jsonl`; with it they are taken too.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from tellback_protocol.catalog_frames import ListedChat

from ..catching_up import caught_up
from ..errors import RefusedError, refused
from .base import address_of, strip_extension
from .emitter import EventTypes
from .messages import MessagesOfContext
from .narrator import name_alone
from .system_messages import system_message
from .views import ReadOnlyDict, ReadOnlyList, freeze

CharacterKey = int | str
"""A character's index in `characters`, its avatar (`Alice.png`), or the name of its folder of chats."""


class LivesOfContext(MessagesOfContext):
    """The verbs of chats."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._characters: ReadOnlyList = ReadOnlyList()
        self._groups: ReadOnlyList = ReadOnlyList()
        self._character: str | None = None
        """As chats name it."""
        self._group: str | None = None

    # -- what is there -----------------------------------------------------------------------------------------------

    @property
    def characters(self) -> ReadOnlyList:
        """The user's characters, read-only: `{character, name, avatar, chat, chats}` each."""
        return self._characters

    @property
    def groups(self) -> ReadOnlyList:
        """The user's groups as their files hold them, read-only."""
        return self._groups

    @property
    def character_id(self) -> int | None:
        """The index in `characters` of the one whose chat is shown; None for a group's chat, or when there is none."""
        for index, character in enumerate(self._characters):
            if character["character"] == self._character:
                return index
        return None

    @property
    def group_id(self) -> str | None:
        """The id of the group whose chat is shown, or None."""
        return self._group

    @property
    def name2(self) -> str:
        """The character's name as its card says; empty in a group, and when none is chosen."""
        index = self.character_id
        return str(self._characters[index]["name"]) if index is not None else self._character or ""

    def get_current_chat_id(self) -> str | None:
        """The name of the shown chat, or None."""
        return self._chat_name()

    async def refresh(self) -> None:
        """Read the lists of characters and groups again."""
        self._characters = freeze(msgspec.to_builtins(await self.client.characters()))
        self._groups = freeze(list(await self.client.groups()))

    # -- which one is shown ------------------------------------------------------------------------------------------

    async def open_chat(self, address: str | Mapping[str, Any], *, create: bool = False) -> None:
        """Show a chat of any character or group, by its address. tellback's own; the seed's verbs stand on it."""
        name = address_of(address)
        async with self._switching:
            await self._show_of(name, create=create)

    async def open_character_chat(self, file_name: str) -> None:
        """Show another chat of the chosen character. Raises: NotFoundError; then what was shown stays."""
        character = self._chosen_character()
        async with self._switching:
            await self._show_of(f"character:{character}/{strip_extension(file_name)}")

    async def open_group_chat(self, group_id: str, chat_id: str) -> None:
        """Show a chat of a group. Raises: NotFoundError when the group, or the chat in it, is not there."""
        name = strip_extension(chat_id)
        async with self._switching:
            group = self._known_group(group_id)
            if group is None or name not in (group.get("chats") or ()):
                await self.refresh()
                group = self._known_group(group_id)
            if group is None:
                raise refused("not-found", f"There is no group {group_id!r}.")
            if name not in (group.get("chats") or ()):
                raise refused("not-found", f"The group {group_id!r} has no chat {name!r}.")
            await self._show_of(f"group:{name}", group=group_id)

    async def select_character(self, character: CharacterKey) -> None:
        """Show the active chat of a character, a new one when it has none. tellback's own."""
        name = self._character_named(character)
        async with self._switching:
            active = await self.client.active_chat(character=name)
            if active is not None:
                await self._show_of(active)
                return
        await self._new_chat(f"character:{name}/", name)

    async def select_group(self, group_id: str) -> None:
        """Show the active chat of a group, a new one when it has none. tellback's own."""
        if self._known_group(group_id) is None:
            raise refused("not-found", f"There is no group {group_id!r}.")
        async with self._switching:
            active = await self.client.active_chat(group=group_id)
            if active is not None:
                await self._show_of(active, group=group_id)
                return
        await self._new_chat("group:", group=group_id)

    async def close_current_chat(self) -> bool:
        """Show nothing and choose nobody; own writes go on until they are stored. True: nothing here can decline."""
        async with self._switching:
            await self._show(None)
            self._character = self._group = None
        return True

    async def reload_current_chat(self) -> None:
        """Read the shown chat again: everything that is stored now is in it when CHAT_CHANGED is told. One at a time.
        """
        async with self._switching:
            held = self._current()
            if held.chat.subscription.error is not None:
                await self._show_of(held.address, group=self._group)
                return
            await caught_up(held.chat)
            if held is self._held:
                self._shown = True
                self._tell([(EventTypes.CHAT_CHANGED, (self._chat_name(),))])

    # -- lives -------------------------------------------------------------------------------------------------------

    async def do_new_chat(self, *, delete_current_chat: bool = False) -> None:
        """Make a chat for the chosen character or group and show it; then the one before may go to the trash.

        It has no messages: a greeting comes from whoever reads the card.
        """
        before = self._held
        if self._group is not None:
            await self._new_chat("group:", group=self._group)
        else:
            character = self._chosen_character()
            await self._new_chat(f"character:{character}/", character)
        if delete_current_chat and before is not None:
            await self._delete(before.address)

    async def rename_chat(self, old_file_name: str, new_name: str) -> None:
        """Give a chat of the chosen character or group another name. Raises: RefusedError `exists`, `name-illegal`."""
        old, new = strip_extension(old_file_name), strip_extension(new_name)
        address = self._address(old)
        chat = await self._target(address)
        await chat.rename(new)
        if self._held is None or self._held.chat is not chat:
            self._forget_target(address)
            self._tell([(EventTypes.CHAT_RENAMED, (old, new))])
        await self.refresh()

    async def delete_character_chat(self, character_id: CharacterKey, file_name: str) -> None:
        """Put a chat of a character into the trash. When it is shown, nothing is shown afterwards."""
        await self._delete(f"character:{self._character_named(character_id)}/{strip_extension(file_name)}")

    async def get_past_character_chats(self, character_id: CharacterKey | None = None) -> list[dict[str, Any]]:
        """All chats of a character, the one changed last first; of the chosen one without `character_id`.

        `{file_name, file_id, file_size, mes, last_mes}` each: `file_id` is what the other verbs take, `file_size` is
        made for people, `mes` is the beginning of the last message, `last_mes` is in milliseconds since 1970.
        """
        name = self._chosen_character() if character_id is None else self._character_named(character_id)
        chats: list[ListedChat] = await self.client.list_chats(character=name)
        return [past_chat(chat) for chat in chats]

    async def save_chat(self) -> None:
        """Wait until all own writes to the shown chat are durable. Raises: ConflictError, what ended the chat."""
        await self._current().chat.saved()

    async def send_system_message(self, type: str, text: str = "", extra: Mapping[str, Any] | None = None) -> int:
        """Put a system message at the end of the shown chat; it is stored like any other. Returns its index.

        Raises: ValueError for a type that the seed does not list.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return await self.add_messages(system_message(type, text, extra, now))

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _show_of(self, address: str, *, create: bool = False, group: str | None = None) -> None:
        """Show a chat and choose whose it is. Called with `_switching` held."""
        if address.startswith("id:"):
            # Only the list knows whose chat it is.
            chat_id = address.removeprefix("id:")
            async for listed in self.client.list_chats():
                if listed.chat_id == chat_id:
                    address = listed.chat
                    break
        await self._show(address, create=create)
        held = self._current()
        name = held.address
        self._character = name.removeprefix("character:").partition("/")[0] if name.startswith("character:") else None
        self._group = group or self._group_of(name_alone(name)) if name.startswith("group:") else None
        if self._character is not None:
            await self.client.set_active_chat(name, character=self._character)
        elif self._group is not None:
            await self.client.set_active_chat(name, group=self._group)

    async def _new_chat(self, folder: str, prefix: str | None = None, *, group: str | None = None) -> None:
        """Make a chat with a name of its own in `folder` and show it."""
        async with self._switching:
            now = datetime.now(UTC).astimezone()
            stamp = now.strftime("%Y-%m-%d@%Hh%Mm%Ss")
            for tail in ("", f"{now.microsecond // 1000:03}ms", f"{now.microsecond:06}us"):
                name = f"{prefix} - {stamp}{tail}" if prefix else f"{stamp}{tail}"
                try:
                    made_chat = await self.client.create_chat(folder + name, group=group)
                    break
                except RefusedError as error:
                    if error.code not in ("exists", "deleted") or tail.endswith("us"):
                        raise
            await self._show_of(folder + name, group=group)
            made_chat.holders -= 1
            made = EventTypes.CHAT_CREATED if group is None else EventTypes.GROUP_CHAT_CREATED
            self._tell([(made, (name,))])
        await self.refresh()

    async def _delete(self, address: str) -> None:
        chat = await self._target(address)
        shown = self._held is not None and self._held.chat is chat
        await chat.remove()
        if not shown:
            # Of the shown chat the commit itself tells.
            self._forget_target(address)
            kind = EventTypes.GROUP_CHAT_DELETED if address.startswith("group:") else EventTypes.CHAT_DELETED
            self._tell([(kind, (name_alone(address),))])
        await self.refresh()

    def _chosen_character(self) -> str:
        if self._character is None:
            raise refused("not-open", "No character is chosen; open one of its chats first.", retry="after-sync")
        return self._character

    def _address(self, name: str) -> str:
        return f"group:{name}" if self._group is not None else f"character:{self._chosen_character()}/{name}"

    def _character_named(self, key: CharacterKey) -> str:
        """The name of a character's folder. Raises: NotFoundError, TypeError."""
        if isinstance(key, bool) or not isinstance(key, (int, str)):
            raise TypeError("a character is named by its index, its avatar or its folder")
        if isinstance(key, str):
            for character in self._characters:
                if key in (character["avatar"], character["character"]):
                    return str(character["character"])
            if not key.isdecimal():
                return key.removesuffix(".png")
            key = int(key)
        if not 0 <= key < len(self._characters):
            raise refused("not-found", f"There is no character {key}; there are {len(self._characters)}.")
        return str(self._characters[key]["character"])

    def _known_group(self, group_id: str) -> ReadOnlyDict | None:
        return next((group for group in self._groups if group.get("id") == group_id), None)

    def _group_of(self, chat: str) -> str | None:
        """The group that has a chat; None when no group's file names it."""
        return next((group.get("id") for group in self._groups if chat in (group.get("chats") or ())), None)


def past_chat(chat: ListedChat) -> dict[str, Any]:
    """A listed chat in the seed's words."""
    name = name_alone(chat.chat)
    return {
        "file_name": f"{name}.jsonl", "file_id": name, "file_size": format_size(chat.size_bytes), "mes": chat.preview,
        "last_mes": chat.changed_ms,
    }


def format_size(size_bytes: int) -> str:
    """A size for people: `12.3 KB`."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    size = size_bytes / 1024
    for unit in ("KB", "MB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GB"
