"""Found: what stands on disk for a chat, judged against what the log says we wrote.

Rules of this module (STORAGE "User files" F8):
- A file is ours when it holds the base's bytes, or those of an INTENT behind the base, or the base's bytes and a torn
  piece of the append that an INTENT announced. Bytes are compared by size and CRC-32.
- Anything else is another program's. Bytes of our own unfinished append inside it are cut out before it is read.
- A sidecar is judged alone, by the same two comparisons.
- A file whose bytes are others and whose stat is the one that we remember is rotten: nobody's edit, and read-only (X6).
- Metadata that a group chat without a header line has from its group's file belong to the content (F12).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping

import msgspec
from msgspec import Raw

from tellback_protocol.chat import EMPTY_METADATA, Chat
from tellback_protocol.effects import ChatEffect, Commit, FloorEffect, StateEffect, versions_chat
from tellback_protocol.errors import Refused
from tellback_protocol.floors import LOG_SUFFIX
from tellback_protocol.frames import Damage
from tellback_protocol.ids import CharacterChat, ChatName, Integrity, Version, derived_uuid, file_integrity
from tellback_protocol.stream import StateDocument, Stream, documents_of
from tellback_protocol.values import equal, loads
from tellback_server.owner_past import OwnerPast
from tellback_server.records import Adopted, Anchor, BaseRecord, FileIdentity, Intent, StateMark
from tellback_server.store.files import LoadedFile, StateFile
from tellback_server.store.held import Pending
from tellback_server.store.jsonl import ParsedChat, inheriting, parse_chat, render_append

__all__ = [
    "Content", "States", "find_content", "find_states", "foreign_content", "no_content", "parse_file", "state_effect",
]

_SECTOR_BYTES = 512
_CONTINUATIONS = bytes(range(0x80, 0xC0))  # UTF-8: every byte of a letter but the first.
ROTTEN = "the file's bytes changed although nobody wrote to it; look with `tellback check`"


class Content(msgspec.Struct, kw_only=True):
    """The chat's file as found."""

    data: bytes
    """What of the file is not a piece of our unfinished append."""
    parsed: ParsedChat
    identity: FileIdentity | None
    """The whole file; None when there is none yet."""
    is_edited: bool
    intent: Intent | None = None
    """The one whose bytes the file holds."""
    rotten: FileIdentity | None = None
    """What the file was when it was written, when nobody wrote to it since and its bytes changed all the same."""
    needs_rewrite: bool = False
    """The file is not what `parsed.image` describes."""
    cut: list[tuple[int, int]] = []
    """Offset and size of each piece of ours that was cut out."""
    metadata_before: bytes | None = None
    """The chat's metadata at the watermark, when an edited file still tells it."""
    inherited: bytes = b""
    """Metadata from the group's file, of a group chat without a header line."""

    def chat(self, version: Version) -> Chat:
        """The chat of the file."""
        parsed = self.parsed
        return Chat(version, parsed.metadata, dict(parsed.messages), bare=set(parsed.bare), odd=set(parsed.odd))

    def integrity(self, epoch: int, seq: int, name: str) -> Integrity:
        """The version's UUID for bytes that we did not write."""
        # NUL stands in no chat that can be read, so no file looks like another one with metadata from elsewhere.
        return file_integrity(epoch, seq, name, self.data + b"\0" + self.inherited if self.inherited else self.data)

    def versions(self, past: OwnerPast, base: BaseRecord) -> tuple[Version, Version]:
        """The stream's and the chat's version that the file holds, when it is ours."""
        head, version = base.head, base.version
        if self.intent is None:
            return head, version
        for commit in past.commits:
            if base.head.seq < commit.version.seq <= self.intent.seq:
                head = commit.version
                if versions_chat(commit):
                    version = commit.version
        return head, version

    @property
    def damage(self) -> list[Damage]:
        """Why the chat is read-only, when it is."""
        told = [] if self.rotten is None else [Damage(0, ROTTEN)]
        return [*told, *self.parsed.damage]

    def holds(self, commit: Commit) -> bool:
        """Whether the file, when it is ours, already holds a pending commit."""
        return self.intent is not None and commit.version.seq <= self.intent.seq


def parse_file(place: ChatName, data: bytes) -> ParsedChat:
    """A chat file's parts; a character's chat has a header."""
    return parse_chat(data, headed=isinstance(place, CharacterChat))


def find_content(
    place: ChatName, loaded: LoadedFile | None, past: OwnerPast, inherited: Callable[[], bytes | None]
) -> Content:
    """Judges the chat's file. `loaded` is None only for a chat of ours that has no file yet. `inherited` gives what the
    group's file tells of a chat without a header line, None when that cannot be told.
    """
    found = _found(place, loaded, past)
    if isinstance(place, CharacterChat):
        return found
    base = past.base
    known = bytes(base.inherited) if base is not None and isinstance(base.inherited, Raw) else None
    if found.is_edited and known is not None:
        found.metadata_before = known
    if found.parsed.image.header is not None:
        return found
    is_settled = found.is_edited or (found.intent is None and not found.needs_rewrite)
    # What a crash left of our own work is finished first, on what it was made from.
    told = inherited() if is_settled or known is None else known
    metadata = told if told is not None else known if known is not None else EMPTY_METADATA
    if found.is_edited and known is None and found.metadata_before == EMPTY_METADATA:
        found.metadata_before = metadata
    elif not found.is_edited and known is not None and not equal(loads(known), loads(metadata)):
        found.is_edited = True
        found.metadata_before = known
    found.parsed = inheriting(found.parsed, metadata)
    found.inherited = b"" if metadata == EMPTY_METADATA else metadata
    return found


def foreign_content(place: ChatName, loaded: LoadedFile, inherited: Callable[[], bytes | None]) -> Content:
    """As `find_content`, of bytes that say all there is to know."""
    return find_content(place, loaded, OwnerPast(None, None), inherited)


def _found(place: ChatName, loaded: LoadedFile | None, past: OwnerPast) -> Content:
    base = past.base
    if loaded is None:
        assert isinstance(base, Anchor), "checked by the caller"
        header = (base.header or "{}").encode() + b"\n"
        return Content(
            data=header, parsed=parse_file(place, header), identity=None, is_edited=False, needs_rewrite=True
        )
    data = loaded.data
    identity = loaded.identity

    def content(data: bytes, **fields: object) -> Content:
        return Content(data=data, parsed=parse_file(place, data), identity=identity, **fields)  # type: ignore[arg-type]

    if base is None:
        return content(data, is_edited=past.has_history)
    size_bytes, crc32 = identity.size_bytes, identity.crc32
    if base.file is not None and base.file.same_bytes(size_bytes, crc32):
        cut = base.cut if isinstance(base, Adopted) else []
        known = base.rotten if _is_untouched(identity, base.file) else None
        return content(without(data, cut), is_edited=False, cut=cut, needs_rewrite=bool(cut), rotten=known)
    for intent in past.ours():
        if intent.kind != "none" and (intent.size_bytes, intent.crc32) == (size_bytes, crc32):
            return content(data, is_edited=False, intent=intent)
    before = _before(data, base)
    if before is None:
        return content(data, is_edited=True, rotten=base.file if _is_untouched(identity, base.file) else None)
    old = parse_file(place, before)
    block = _announced(old, past)
    if block and _is_torn(data[len(before) :], block, len(before)):
        return Content(data=before, parsed=old, identity=identity, is_edited=False, needs_rewrite=True)
    cut = _pieces(data, len(before), block, place, past)
    return content(
        without(data, cut), is_edited=True, cut=cut, needs_rewrite=bool(cut), metadata_before=old.metadata
    )


def _is_untouched(found: FileIdentity, known: FileIdentity | None) -> bool:
    """Whether nobody wrote to the file since it was known."""
    return known is not None and known.is_untouched(found.size_bytes, found.mtime_ns, found.inode)


def no_content(past: OwnerPast) -> Content:
    """What an owner without messages has of a chat."""
    is_edited = past.base is None and past.has_history
    return Content(data=b"", parsed=parse_chat(b"", headed=False), identity=None, is_edited=is_edited)


def _before(data: bytes, base: BaseRecord) -> bytes | None:
    """The base's bytes, when the file still begins with them."""
    if base.file is None or len(data) < base.file.size_bytes:
        return None
    before = data[: base.file.size_bytes]
    if zlib.crc32(before) != base.file.crc32:
        return None
    return before


def _announced(old: ParsedChat, past: OwnerPast) -> bytes:
    """The bytes of the newest announced append behind the base, worked out anew; empty when there is none."""
    base = past.base
    assert base is not None, "an INTENT has a base"
    for intent in past.ours():
        if intent.kind != "append" or intent.before is None or base.file is None:
            continue
        if not intent.before.same_bytes(base.file.size_bytes, base.file.crc32):
            continue
        chat = Chat(base.version, old.metadata, dict(old.messages), bare=set(old.bare), odd=set(old.odd))
        for commit in past.pending():
            if commit.version.seq <= intent.seq:
                for effect in commit.ops:
                    if isinstance(effect, ChatEffect):
                        chat.apply(effect)
        lines = {key: line for key, line in chat.messages.items() if key not in old.messages}
        if not lines:
            continue
        block, _image = render_append(old.image, lines)
        if zlib.crc32(block, base.file.crc32) == intent.crc32:
            return block
    return b""


def _is_torn(rest: bytes, block: bytes, offset: int) -> bool:
    """Whether `rest` (at `offset` in the file) is what a power cut leaves of `block`, unwritten sectors included.

    A sector that is neither ours nor empty is what the disk had before, unless it is text: nobody else wrote that.
    """
    if not rest or len(rest) > len(block):
        return False
    if block.startswith(rest):
        return True
    at = 0
    while at < len(rest):
        end = min(len(rest), at + _SECTOR_BYTES - (offset + at) % _SECTOR_BYTES)
        piece = rest[at:end]
        if piece != block[at:end] and piece.strip(b"\0"):
            # The last written sector may be cut inside: its beginning ours, zeros behind.
            kept = piece.rstrip(b"\0")
            if not block[at:end].startswith(kept) and _is_text(piece):
                return False
        at = end
    return True


def _is_text(piece: bytes) -> bool:
    """Whether this may be a part of a text file; a letter may be cut at either end."""
    tail = piece[:3].lstrip(_CONTINUATIONS) + piece[3:]
    try:
        text = tail.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return False
        text = tail[: error.start].decode()
    return "\0" not in text


def _pieces(data: bytes, offset: int, block: bytes, place: ChatName, past: OwnerPast) -> list[tuple[int, int]]:
    """Where our own unfinished append stands in a file that another program wrote to as well."""
    if not block:
        return []
    at = data.find(block, offset)
    if at >= 0:
        return [(at, len(block))]
    ours = block.split(b"\n")
    cut: list[tuple[int, int]] = []
    damaged = {damage.line for damage in parse_file(place, data).damage}
    start = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        if number in damaged and start >= offset and any(len(line) < len(own) and own.startswith(line) for own in ours):
            cut.append((start, min(len(line) + 1, len(data) - start)))
        start += len(line) + 1
    return cut


def without(data: bytes, cut: list[tuple[int, int]]) -> bytes:
    """`data` without the pieces."""
    for start, size_bytes in reversed(cut):
        data = data[:start] + data[start + size_bytes :]
    return data


# -- sidecars --------------------------------------------------------------------------------------------------------


class States(msgspec.Struct, kw_only=True):
    """The sidecars as found."""

    documents: dict[str, StateDocument]
    marks: dict[str, StateMark]
    identities: dict[str, FileIdentity]
    edited: set[str]
    after: dict[str, int]
    """The last seq that a sidecar holds, where that is not the base's."""

    def fold(self, stream: Stream, commit: Commit, pending: Pending) -> None:
        """Installs a pending commit's state effects that no sidecar holds yet."""
        for effect in commit.ops:
            if not isinstance(effect, StateEffect):
                continue
            ours = [name for name in documents_of(effect) if name not in self.edited]
            due = [name for name in ours if commit.version.seq > self.after.get(name, 0)]
            for name in ours:
                document = stream.states.get(name)
                if name not in due and document is not None:
                    document.version = effect.version
            if due == list(documents_of(effect)):
                stream.apply_state(effect)
            elif effect.namespace in due:
                stream.apply_state(
                    StateEffect(effect.namespace, effect.version, None, effect.data, effect.patch, effect.deleted)
                )
            elif due and isinstance(effect, FloorEffect):
                stream.apply_floor(effect)
            pending.states.update(due)

    def remember_deleted(self, done: list[Commit]) -> None:
        """A deleted state keeps its version for as long as the log tells it: a base may name it."""
        for commit in done:
            for effect in commit.ops:
                if not isinstance(effect, StateEffect) or effect.deleted is not True:
                    continue
                for name in documents_of(effect):
                    document = self.documents.setdefault(name, StateDocument(None, None))
                    if not document.exists and not document.corrupt and name not in self.edited:
                        document.version = effect.version

    def adopt(self, stream: Stream, head: Version) -> None:
        """Gives every sidecar that another program changed the version of the adoption."""
        for namespace in self.edited:
            document = stream.states.get(namespace)
            if document is None:
                document = stream.states[namespace] = StateDocument(None, None)
            integrity = derived_uuid(head.integrity, namespace, document.data or b"")
            document.version = Version(head.epoch, head.seq, integrity)
            if namespace in self.marks:
                mark = self.marks[namespace]
                self.marks[namespace] = msgspec.structs.replace(mark, version=document.version)

    def miscounted(self, stream: Stream) -> list[str]:
        """Logs of floor states whose file counts messages that another program moved while we knew better."""
        names: list[str] = []
        for namespace, log in stream.floors.items():
            log.moved()
            name = namespace + LOG_SUFFIX
            data, mark = stream.states[name].data, self.marks.get(name)
            if data is not None and mark is not None and (len(data), zlib.crc32(data)) != (mark.size_bytes, mark.crc32):
                names.append(name)
        return names

    def integrity(self, epoch: int, seq: int, name: str, namespaces: Iterable[str] | None = None) -> str:
        """The head's UUID for sidecars that we did not write: those that were changed, or `namespaces`."""
        parts: list[bytes | str | int] = [epoch, seq, name]
        for namespace in sorted(self.edited if namespaces is None else namespaces):
            parts.append(namespace)
            document = self.documents.get(namespace)
            parts.append(document.data or b"" if document is not None else b"")
        return derived_uuid(*parts)

    def ours(self, namespace: str, live: Stream | None, pending: list[Commit]) -> bytes | None:
        """Our own document of an edited namespace, as far as it is known."""
        if live is not None:
            document = live.states.get(namespace)
            return None if document is None else document.data
        known = StateDocument(None, None)
        scratch = Stream("", "", "", Chat(Version(1, 0, "")))
        scratch.states[namespace] = known
        for commit in pending:
            for effect in commit.ops:
                if isinstance(effect, FloorEffect) and effect.namespace != namespace in documents_of(effect):
                    # The commits that were to join the log.
                    scratch.apply_floor(effect)
                elif isinstance(effect, StateEffect) and effect.namespace == namespace:
                    try:
                        scratch.apply_state(effect)
                    except Refused:
                        # A patch of a document that is gone: the patch itself is what we can keep.
                        known.data = bytes(effect.patch) if isinstance(effect.patch, Raw) else known.data
        return scratch.states[namespace].data


def find_states(found: Mapping[str, StateFile], past: OwnerPast, name: str) -> States:
    """Judges every sidecar that stands or should stand."""
    base = past.base
    expected = base.states if base is not None else {}
    states = States(documents={}, marks={}, identities={}, edited=set(), after={})
    intents = past.ours() if base is not None else []
    for namespace in sorted({*found, *expected, *(ns for intent in intents for ns in intent.states)}):
        file = found.get(namespace)
        mark = expected.get(namespace)
        size = None if file is None else (file.identity.size_bytes, file.identity.crc32)
        version: Version | None = None
        if (None if mark is None else (mark.size_bytes, mark.crc32)) == size:
            version = mark.version if mark is not None else None
        else:
            done = next((i for i in intents if namespace in i.states and _pair(i.states[namespace]) == size), None)
            if done is not None:
                states.after[namespace] = done.seq
                # A log whose messages moved is written again without another version.
                version = _version_at(past, namespace, done.seq) or (mark.version if mark is not None else None)
            elif file is not None and mark is not None and _is_rotten(file.identity, mark, past, namespace):
                # Nobody wrote, so the disk lost some of it: its bytes are shown to nobody, and it is no edit (X6).
                states.documents[namespace] = StateDocument(mark.version, None, corrupt=True)
                states.identities[namespace] = file.identity
                states.marks[namespace] = mark
                continue
            elif past.has_history:
                states.edited.add(namespace)
            else:
                assert file is not None, "nothing is expected, so it was found"
                version = Version(1, 0, file_integrity(1, 0, f"{name}#{namespace}", file.data))
        if file is None:
            if namespace in states.edited or version is not None:
                states.documents[namespace] = StateDocument(version, None)
            continue
        data = None if file.corrupt else file.data
        states.documents[namespace] = StateDocument(version, data, corrupt=file.corrupt)
        states.identities[namespace] = file.identity
        states.marks[namespace] = StateMark(
            version or Version(1, 0, file_integrity(1, 0, f"{name}#{namespace}", file.data)),
            file.identity.size_bytes,
            file.identity.crc32,
            file.identity.mtime_ns,
            file.identity.inode,
        )
    return states


def _is_rotten(found: FileIdentity, mark: StateMark, past: OwnerPast, namespace: str) -> bool:
    """Whether a sidecar's bytes changed without anybody's write. One that commits wait for is adopted: they have to be
    kept.
    """
    return _is_untouched(found, mark.identity) and not any(
        namespace in documents_of(effect) for commit in past.pending() for effect in commit.ops
        if isinstance(effect, StateEffect)
    )


def _pair(value: tuple[int, int] | None) -> tuple[int, int] | None:
    return None if value is None else (value[0], value[1])


def _version_at(past: OwnerPast, namespace: str, seq: int) -> Version | None:
    version: Version | None = None
    for commit in past.pending():
        for effect in commit.ops:
            if commit.version.seq <= seq and isinstance(effect, StateEffect) and namespace in documents_of(effect):
                version = effect.version
    return version


def state_effect(stream: Stream, namespace: str) -> StateEffect:
    """A state document as it is, as one effect."""
    document = stream.states[namespace]
    assert document.version is not None, "a commit or an adoption gave it one"
    data = document.data
    if data is None:
        return StateEffect(namespace, document.version, None, deleted=True)
    return StateEffect(namespace, document.version, None, data=Raw(data))
