"""Findings: what a check can say, each with a stable code. Pure (BEHAVIOUR X1, X2).

    info      as other programs write it, or as it is meant to be; nothing has to be done
    warning   everything is served, and something in it is not as it should be
    damage    bytes that cannot be read as they were written; the part of it is refused or read-only
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

__all__ = ["CODES", "Code", "Finding", "Severity", "Tally", "found"]

Severity = Literal["info", "warning", "damage"]
REPEATED_MAX: Final = 50
"""Findings of one code that are told singly in one file; the rest is a number."""


class Code(msgspec.Struct, frozen=True):
    """What a code means. `remedy` says what can be done; `mends` that `tellback repair` does it."""

    severity: Severity
    meaning: str
    remedy: str
    mends: bool = False
    otherwise: str = ""
    """What can be done where `tellback repair` knows nothing that puts it right."""


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that was found. Persisted in nobody's file, but read by scripts: keep the fields."""

    code: str
    severity: Severity
    path: str
    """Below the data folder, with slashes; a path that was given alone as it was given."""
    message: str
    remedy: str
    line: int = 0
    """1-based, as editors count; 0 when it is not about a line."""
    offset: int = -1
    """The byte where it begins; -1 when it is not about a place."""
    count: int = 1
    """How often it was found in this file from here on."""
    mends: bool = False
    """`tellback repair` does something about it."""


def _info(meaning: str, remedy: str = "Nothing has to be done.", mends: bool = False) -> Code:
    return Code("info", meaning, remedy, mends)


def _warning(meaning: str, remedy: str, mends: bool = False) -> Code:
    return Code("warning", meaning, remedy, mends)


def _damage(meaning: str, remedy: str, mends: bool = False, otherwise: str = "") -> Code:
    return Code("damage", meaning, remedy, mends, otherwise)


_REPAIR: Final = "`tellback repair` keeps the bytes and mends the file."
_FROM_BACKUP: Final = "Restore it from a backup, or delete it."
_FROM_OWN_BACKUP: Final = "Restore it from a backup of the data folder."
_STATE_ANEW: Final = "`tellback repair` makes it anew where the log or a backup knows it."
_BY_HAND: Final = "Correct it in an editor, put a whole copy in its place, or delete it."
_SERVED: Final = "It is served all the same."

CODES: Final[dict[str, Code]] = {
    # Any file.
    "file-unsafe": _damage(
        "a link, a folder or something else stands where a file belongs", "Put a regular file there, or remove it."
    ),
    "file-unreadable": _damage("the system does not let this user read it", "Give the right, or look at the disk."),
    "file-busy": _info("the file changed faster than it could be read", "Check it again."),
    "file-changed-meanwhile": _info("what looked wrong was gone at the second look: a server is at work here"),
    "file-left-over": _info("a half-written file that a crash left", "The next start removes it."),
    "file-swapped-out": _warning(
        "a save that was swapped out when a crash came", "The next opening of its chat decides what becomes of it."
    ),
    "file-unknown": _info("this is nobody's file; it is left alone"),
    "file-double-ending": _info("the name ends in .jsonl.jsonl; the chat is called so"),
    "name-not-text": _warning("the name is no Unicode text, so that nobody can open it", "Rename the file."),
    "name-twin": _warning(
        "another name differs only in case or Unicode form; some systems take them for one", "Rename one of them."
    ),
    # Lines of a chat.
    "line-not-json": _damage("a line cannot be read", _REPAIR, True),
    "line-not-object": _damage("a line holds something else than an object", _REPAIR, True),
    "line-zeroed": _damage("zero bytes stand in a line: the disk lost a piece of it", _REPAIR, True),
    "line-not-utf8": _damage("a line is no UTF-8", _REPAIR, True),
    "lines-joined": _damage("several objects stand on one line: a line end was lost", _REPAIR, True),
    "tail-torn": _damage("the last line is cut off", _REPAIR, True),
    "line-ends-cr": _damage("the lines end in CR alone", _REPAIR, True),
    "line-ends-crlf": _info("lines end in CR LF"),
    "line-blank": _info("blank lines stand between the others"),
    "encoding-utf16": _damage("the file is UTF-16", _REPAIR, True),
    "encoding-bom": _info(
        "the file begins with a byte order mark; SillyTavern 1.12 then drops the header", "Save it without the mark."
    ),
    "chat-empty": _info("the file holds nothing: a chat without messages"),
    # The header.
    "header-unreadable": _damage("the first line is no header that can be read", _REPAIR, True),
    "header-missing": _warning(
        "the chat has no header line; SillyTavern takes the first message for it",
        "`tellback repair` puts one in front.", True,
    ),
    "header-in-group": _info("an old group chat: its metadata stand in the group's file"),
    "header-repeated": _warning("a second header stands among the messages", "It is served as a message; delete it."),
    "header-cardshark": _info("CardShark's header; it is read in place"),
    "metadata-nested": _warning(
        "chat_metadata stands inside chat_metadata, as a fault of other programs leaves it",
        "`tellback repair` takes the inner one out.", True,
    ),
    "metadata-not-object": _warning("chat_metadata is no object and counts as empty", "Correct it in an editor."),
    # Messages.
    "message-id-missing": _info("messages without an id get one that follows from their bytes"),
    "message-id-illegal": _warning(
        "an id that cannot be one is read as none", "`tellback repair` writes the id that is served.", True
    ),
    "message-id-duplicate": _warning(
        "a second message has the same id; it is served under another one",
        "`tellback repair` writes the id that is served.", True,
    ),
    "message-without-text": _info("a message has neither `mes` nor `content`"),
    "message-half-character": _info("half a surrogate pair; it is served as U+FFFD and kept as it is"),
    "message-extra-odd": _info("`extra` is no object"),
    "message-large": _info("a message is larger than a frame may be by default"),
    "swipe-id-odd": _info("`swipe_id` names no swipe; the nearest one counts"),
    "swipes-odd": _info("`swipes` or an entry of it is no text; it counts as empty or not at all"),
    "swipe-info-odd": _info("`swipe_info` is missing, short, long or has gaps; it is filled up"),
    # What we know of a chat's file.
    "chat-bit-flipped": _damage("one bit differs from what was written", "`tellback repair` turns it back.", True),
    "chat-rotten": _damage(
        "the bytes changed although nobody wrote to the file: the disk lost some of them", _REPAIR, True
    ),
    "chat-edited": _info("another program changed the file; the next opening adopts that"),
    "chat-shorter": _warning(
        "the file holds fewer messages than when tellback wrote it: another program deleted some, or it was cut off, "
        "or is an older copy",
        "The next opening adopts it; what only the log or a backup holds is kept there.",
    ),
    "chat-append-torn": _info("an append of ours was cut off; the next start finishes it"),
    "chat-missing": _warning("the log knows a chat whose file is gone", "The next start keeps what only the log has."),
    "chat-id-duplicate": _damage(
        "two chats say that they are the same one", "`tellback repair` makes the copy a chat of its own.", True
    ),
    "chat-id-illegal": _info("the header's chat_id is no UUID; the one of chat_sync counts"),
    # Sidecars.
    "state-not-json": _damage(
        "the state cannot be read; it is answered with state-corrupt", _STATE_ANEW, True, _BY_HAND
    ),
    "state-not-object": _info("the state is no object"),
    "state-bit-flipped": _damage("one bit differs from what was written", "`tellback repair` turns it back.", True),
    "state-rotten": _damage(
        "the bytes changed although nobody wrote to the file", _STATE_ANEW, True, _BY_HAND
    ),
    "state-edited": _info("another program changed the state; the next opening adopts that"),
    "state-orphaned": _warning("the state's owner is gone", "`tellback repair` moves it to the trash.", True),
    "state-name-odd": _warning("the name is nearly that of a state, and no namespace", "Rename or delete the file."),
    "sync-unusable": _damage(
        "chat_sync cannot be read; the log and the session file know the same", "`tellback repair` makes it anew.",
        True,
    ),
    "sync-foreign": _info("chat_sync is another program's"),
    "sync-edited": _info("another program wrote into chat_sync; what tellback wrote into it counts"),
    "sync-copied": _info("chat_sync speaks of the chat that this one was copied from; this one is a new chat"),
    "sync-behind": _info("the log knows more than chat_sync"),
    "sync-ahead-of-log": _damage(
        "chat_sync tells of commits that the log never had: the log is an older copy",
        "`tellback repair` begins a new epoch at what the files hold.", True,
    ),
    "floor-log-odd": _damage("the log of a floor state holds no list of commits", _STATE_ANEW, True, _BY_HAND),
    "floor-commit-odd": _warning("a commit of a floor state is not understood and counts for nothing", _SERVED),
    "floor-message-missing": _warning("a commit belongs to a message that is gone", "The next write drops it."),
    # Groups, cards, presets.
    "group-not-json": _damage("the group's file cannot be read", _FROM_BACKUP),
    "group-chat-missing": _warning("the group lists a chat that has no file", "Take it out of the list."),
    "group-member-missing": _warning("the group lists a member that has no card", "Take it out of the list."),
    "group-shown-unlisted": _warning("the group shows a chat that it does not list", "Choose another chat."),
    "group-id-differs": _info("the group's id is not the name of its file"),
    "group-chat-unlisted": _info("no group lists this chat"),
    "card-not-png": _warning("the card is no PNG", _FROM_BACKUP),
    "card-broken": _damage("a piece of the picture does not match its checksum or is cut off", _FROM_BACKUP),
    "card-trailing": _info("bytes stand behind the end of the picture"),
    "card-without-character": _warning("the picture holds no character that can be read", _FROM_BACKUP),
    "preset-not-json": _damage("the preset cannot be read", _FROM_BACKUP),
    # Backups and trash.
    "backup-broken": _damage("a backup cannot be read whole", "Keep it, and make a new one while the chat is well."),
    "backup-lines-odd": _info("a backup without a manifest holds lines that cannot be read, perhaps as its chat did"),
    "backup-differs": _damage("a backup is not what its manifest says", "Do not restore it."),
    "manifest-broken": _damage(
        "the manifest cannot be read, so that nothing of this entry comes back by itself",
        "`tellback repair` writes it anew from what the folder holds.", True, "Take what it holds out by hand.",
    ),
    "trash-file-missing": _info("a file of a trash entry is not there; it was not there when it was deleted"),
    "trash-untold": _warning("a file in the trash that no manifest tells of", "Take it out by hand."),
    # The server's own.
    "log-bit-flipped": _damage("one bit of the log flipped", "The next start turns it back.", True),
    "log-torn-tail": _info("the end of the log is a write that was never told", "The next start cuts it off."),
    "log-corrupt": _damage(
        "something that was durable cannot be read", "The server does not start; `tellback repair` shows the choices.",
        True,
    ),
    "log-saved-tail": _info("a torn end that an earlier start cut off and kept"),
    "log-put-aside": _info("a damaged log that an earlier repair put aside"),
    "term-bit-flipped": _damage("one bit of the term file flipped", "The next start turns it back.", True),
    "term-unusable": _damage(
        "the term file cannot be read", "`tellback repair` makes it anew from the log.", True, _FROM_OWN_BACKUP
    ),
    "session-unusable": _damage(
        "the session file cannot be read; the log is read instead, as far back as it goes",
        "`tellback repair` puts it aside; the next start makes it anew.", True,
    ),
    "session-bit-flipped": _damage("one bit of a file of the server flipped; it is read all the same", _REPAIR, True),
    "name-unusable": _damage(
        "what an owner was called before cannot be read", "`tellback repair` puts it aside.", True
    ),
    "active-unusable": _damage(
        "the remembered active chats cannot be read; the log is read instead", "`tellback repair` puts it aside.", True
    ),
    "index-unusable": _info("the index of lists is rebuilt: it is derived data"),
    "binding-unusable": _damage(
        "which store this folder belongs to cannot be read, so that no server starts", _FROM_OWN_BACKUP
    ),
    "flushed-unusable": _info("how far the backup was brought cannot be read; everything is compared anew"),
    "owner-copy-broken": _damage(
        "an owner on its way into or out of a store is not what was written",
        "Keep it; store and log may have it whole.",
    ),
    "journal-line-broken": _info("a line of the journal of imports cannot be read; its file is compared instead"),
    "lock-odd": _warning("something else than a file stands at LOCK, so that no server can start", "Remove it."),
    "repair-unfinished": _warning("a repair was cut off", "Run `tellback repair` again; it goes on.", True),
}
"""Every code that a check can tell. Stable: scripts read them."""


def found(
    code: str, path: str, detail: str = "", *, line: int = 0, offset: int = -1, count: int = 1,
    severity: Severity | None = None, is_known: bool = True,
) -> Finding:
    """A finding of this code; `detail` is a sentence's part that is put behind the meaning. `is_known`: something tells
    what ought to stand there.
    """
    what = CODES[code]
    remedy, mends = (what.remedy, what.mends) if is_known else (what.otherwise, False)
    message = what.meaning + (f" ({detail})" if detail else "")
    return Finding(
        code, severity or what.severity, path, message[0].upper() + message[1:] + ".", remedy, line, offset,
        count, mends,
    )


class Tally:
    """The findings of one file: infos and warnings once a code with their number, damage singly up to a bound."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._found: dict[str, list[Finding]] = {}

    def add(
        self, code: str, detail: str = "", *, line: int = 0, offset: int = -1, is_known: bool = True
    ) -> None:
        known = self._found.setdefault(code, [])
        if not known or (_is_single(code) and len(known) < REPEATED_MAX):
            known.append(found(code, self.path, detail, line=line, offset=offset, is_known=is_known))
        else:
            known[-1] = msgspec.structs.replace(known[-1], count=known[-1].count + 1)

    def put(self, finding: Finding) -> None:
        """A finding that is made already."""
        self._found.setdefault(finding.code, []).append(finding)

    def __contains__(self, code: str) -> bool:
        return code in self._found

    def take(self) -> list[Finding]:
        """All of them, by place."""
        return sorted((one for known in self._found.values() for one in known), key=lambda one: (one.line, one.offset))


def _is_single(code: str) -> bool:
    return CODES[code].severity == "damage"
