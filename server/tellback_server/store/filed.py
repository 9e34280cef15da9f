"""Filed: an owner of a store as SillyTavern and Luker keep it in files, and back again. Pure.

    own_files(value, image, now_ms)     every file by how its name goes on: `.jsonl`, `.luker-state.memory.json`
    as_files(value, now_ms)             the same and chat_sync, by path below the user's root
    chat_as_found(value, now_ms)        the chat's own file, byte for byte what it was made from as long as nobody wrote
    from_files(contents, ...)           the value that such files make

Rules of this module (STORAGE "A store in the place of files"):
- There and back again a chat has the same lines, ids, metadata and states: what restores and exports rest on.
- Every message has its id in its line; of a line of another program that had none, the id tells the bytes (F3).
- A header whose metadata did not change is written as it was found.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from tellback_protocol.chat import EMPTY_METADATA, with_id
from tellback_protocol.ids import (
    FILE_NAME_BYTES_MAX,
    CharacterChat,
    ChatName,
    Place,
    StateOwner,
    Version,
    derived_message_id,
    namespace_problem,
    parse_place,
    sidecar_name,
    stem_of,
)
from tellback_protocol.stream import StateDocument
from tellback_protocol.values import dumps
from tellback_server.store.base import StoredChat
from tellback_server.store.files import is_corrupt
from tellback_server.store.held import state_mark
from tellback_server.store.jsonl import Image, ParsedChat, inheriting, parse_chat, render
from tellback_server.store.marks import SYNC_NAMESPACE, SyncMark, Watermark, mark_fields
from tellback_server.store.place import CHAT_ENDING, file_of
from tellback_server.store.store_state import decode_listing, image_of, listing_of

__all__ = ["as_files", "chat_as_found", "from_files", "line_as_found", "own_files", "parse_chat_of"]

_DIGEST_CHARACTERS: Final = 16


def own_files(value: StoredChat, image: Image, now_ms: int) -> dict[str, bytes]:
    """What a copy of the owner's files would hold, but for chat_sync. `image` is what the chat's file had besides its
    messages; `now_ms` goes into a header that has to be written anew.
    """
    place = _place(value)
    stem = stem_of(place)
    files: dict[str, bytes] = {}
    if not isinstance(place, StateOwner):
        files[CHAT_ENDING] = _chat_file(value, image, now_ms)
    for namespace, document in value.states.items():
        if namespace != SYNC_NAMESPACE and (data := document.data) is not None:
            files[sidecar_name(place, namespace)[len(stem) :]] = data
    return files


def as_files(value: StoredChat, now_ms: int) -> dict[str, bytes]:
    """An owner as SillyTavern and Luker keep it, by path below the user's root."""
    place = _place(value)
    folder, stem = "/".join(file_of(place)[0]), stem_of(place)
    own = own_files(value, image_of(place, decode_listing(value.summary), value.metadata), now_ms)
    watermark = Watermark(0, 0, 0)
    if CHAT_ENDING in own:
        chat = own[CHAT_ENDING]
        watermark = Watermark(len(chat), len(value.messages), zlib.crc32(chat))
    marks = {
        namespace: state_mark(document.version, data) for namespace, document in value.states.items()
        if document.version is not None and (data := document.data) is not None
    }
    mark = SyncMark(value.chat_id, value.name, value.version, value.head, watermark, marks)
    fields = {"integrity": value.version.integrity, "updated_at": now_ms, "tellback": mark_fields(mark)}
    files = {f"{folder}/{stem}{ending}": data for ending, data in own.items()}
    files[f"{folder}/{sidecar_name(place, SYNC_NAMESPACE)}"] = dumps(fields)
    return dict(_nameable(files))


def _nameable(files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Without what no file system could name; the owner itself stands beside its files."""
    for path, data in files.items():
        if len(path.rpartition("/")[2].encode("utf-8", "surrogatepass")) <= FILE_NAME_BYTES_MAX:
            yield path, data


def _chat_file(value: StoredChat, image: Image, now_ms: int) -> bytes:
    return render(image, value.messages, set(), value.metadata, value.chat_id, now_ms).data


def chat_as_found(value: StoredChat, now_ms: int) -> bytes:
    """The chat's own file as another program had it: without the ids that only tell the bytes of a line."""
    place = _place(value)
    messages: dict[str, bytes] = {}
    bare: set[str] = set()
    for message_id, line in value.messages.items():
        found = messages[message_id] = line_as_found(line, message_id)
        if found is not line:
            bare.add(message_id)
    image = image_of(place, decode_listing(value.summary), value.metadata)
    return render(image, messages, bare, value.metadata, value.chat_id, now_ms).data


def line_as_found(line: bytes, message_id: str) -> bytes:
    """The line of a message, without an id that was derived from it."""
    digits, dash, occurrence = message_id.rpartition("-")
    if not (dash and len(digits) == _DIGEST_CHARACTERS and occurrence.isascii() and occurrence.isdigit()):
        return line
    start = b'{"id":' + msgspec.json.encode(message_id)
    if not line.startswith(start):
        return line
    found = b"{" + line[len(start) :].removeprefix(b",")
    return found if derived_message_id(found, int(occurrence)) == message_id else line


def parse_chat_of(place: ChatName, data: bytes, inherited: bytes | None = None) -> ParsedChat:
    """A chat's file; `inherited` are the metadata of one without a header, where its group's file tells them."""
    parsed = parse_chat(data, headed=isinstance(place, CharacterChat))
    if inherited is not None and parsed.image.header is None and not isinstance(place, CharacterChat):
        return inheriting(parsed, inherited)
    return parsed


def from_files(
    place: Place, parsed: ParsedChat | None, states: Mapping[str, bytes], *, chat_id: str, version: Version,
    now_ms: int, state_version: Callable[[str, bytes], Version] | None = None,
) -> StoredChat:
    """An owner at one version of `states` by namespace, and of a chat's parts. Lines that are no messages have no place
    in it: look at `parsed.damage` first.
    """
    messages: dict[str, bytes] = {}
    if parsed is not None:
        messages = {
            message_id: with_id(line, message_id) if message_id in parsed.bare else line
            for message_id, line in parsed.messages.items()
        }
    value = StoredChat(
        chat_id=chat_id, name=str(place), head=version, version=version,
        metadata=EMPTY_METADATA if parsed is None else parsed.metadata, messages=messages,
        states={
            namespace: StateDocument(
                version if state_version is None else state_version(namespace, data), data, corrupt=is_corrupt(data)
            ) for namespace, data in states.items()
            if namespace != SYNC_NAMESPACE and namespace_problem(namespace) is None
        },
    )
    image = Image(isinstance(place, CharacterChat)) if parsed is None else parsed.image
    value.summary = msgspec.json.encode(listing_of(image, value, now_ms))
    return value


def _place(value: StoredChat) -> Place:
    place = parse_place(value.name)
    assert not isinstance(place, str), "a stored name is an address"
    return place
