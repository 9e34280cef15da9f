"""What a life write means, against literal facts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tellback_protocol import codec
from tellback_protocol.chat import Chat
from tellback_protocol.decide import Committed, Duplicate, Facts, Fresh, Stored, decide, install
from tellback_protocol.errors import Refused
from tellback_protocol.frames import Limits
from tellback_protocol.ids import Version
from tellback_protocol.life import branch_stem, branch_twig, branched_name, sibling
from tellback_protocol.requests import ChatBranch
from tellback_protocol.stream import Stream

SESSION = "session-of-tab-one"
START = "00000000-0000-4000-8000-000000000000"
NAME = "character:Alice/Talk"


def integrity(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def stream() -> Stream:
    chat = Chat.from_values(Version(1, 0, START), {}, [{"id": "m0", "mes": "a"}, {"id": "m1", "extra": [], "mes": "b"}])
    return Stream("user", NAME, "0b0e1f2a-3c4d-4e5f-8a9b-0c1d2e3f4a5b", chat)


def ask(of: Stream, seq: int = 1, facts: Facts | None = None, **fields: Any) -> Committed | Stored | Duplicate:
    """Decide and install."""
    request: Any = codec.decode_client(msgspec.json.encode({"chat": NAME, "id": 1, **fields}), Limits())
    decision = decide(of, request, SESSION, Fresh(integrity(seq), 16, 7), Limits(), facts or Facts())
    if not isinstance(decision, Duplicate):
        install(of, SESSION, fields["op"], decision, 7)
    return decision


def code(decision: object) -> str:
    assert isinstance(decision, Stored)
    return str(msgspec.json.decode(b"{" + decision.outcome.body + b"}")["code"])


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("group:Talk", "Talk"), ("group:Talk - Branch #12", "Talk"), ("group:Talk - Checkpoint #1", "Talk"),
        ("group:Talk - Branch #1 - Checkpoint #2", "Talk"), ("group:Talk - Branch #x", "Talk - Branch #x"),
        ("group: - Branch #1", " - Branch #1"), ("character:A/" + "ä" * 100, "ä" * 53),
    ],
)
def test_a_branchs_name_begins_with_the_name_without_its_ending_j7(name: str, stem: str) -> None:
    """[J7]"""
    assert branch_stem(name) == stem
    assert branched_name("character:A/x - Branch #3", "checkpoint", 2) == "character:A/x - Checkpoint #2"


@pytest.mark.parametrize("source", [{}, {"integrity": START}])
def test_sillytaverns_mark_of_a_chat_is_not_shared_with_its_branch_j7(source: dict[str, str]) -> None:
    """[J7]: SillyTavern saves over any file with the mark that its tab holds."""
    chat = Chat.from_values(Version(1, 0, START), {**source, "note": 1}, [{"id": "m0", "mes": "a"}])

    twig = branch_twig(chat, ChatBranch(NAME, "m0"), "Talk", integrity(9))

    own = {"integrity": integrity(9)} if source else {}
    assert msgspec.json.decode(twig.metadata) == {**own, "note": 1, "main_chat": "Talk"}


def test_the_name_beside_a_name_stays_in_its_folder() -> None:
    assert [sibling(name, "n") for name in ("character:A/x", "group:x", "character:A", "preset:instruct/x")] == [
        "character:A/n", "group:n", "character:n", "preset:instruct/n",
    ]


def test_a_rename_leaves_the_chats_version_alone_and_its_base_looks_at_names_only_j9() -> None:
    """[J4] [J9] [V3]"""
    chat = stream()
    ask(chat, 1, type="append", op=1, base="*", messages=[{"mes": "c"}])
    renamed = ask(chat, 2, Facts(to="x"), type="chat-rename", op=2, base=START, to="New")
    assert isinstance(renamed, Committed)
    assert (chat.name, chat.chat.version.integrity, chat.head.integrity) == (
        "character:Alice/New", integrity(1), integrity(2))
    stale = ask(chat, 3, type="chat-rename", op=3, base=integrity(1), to="Newer")
    assert isinstance(stale, Stored)
    assert stale.outcome.kind == "conflict"
    # An append made before the rename is not stale.
    assert isinstance(ask(chat, 4, type="append", op=4, base=integrity(1), messages=[{"mes": "d"}]), Committed)
    assert code(ask(chat, 5, type="chat-rename", op=5, base="*", to="New")) == "exists"
    taken = Facts(refused=("exists", "The name is taken."))
    assert code(ask(chat, 6, taken, type="chat-rename", op=6, base="*", to="Other")) == "exists"


def test_what_is_deleted_takes_nothing_but_a_restore_j6() -> None:
    """[J6]: and what it answered before, it answers again."""
    chat = stream()
    assert code(ask(chat, 1, type="chat-delete", op=1, base="*")) == "base-illegal"
    gone = ask(chat, 2, Facts(linked_from=["group:x"]), type="chat-delete", op=2, base=START)
    assert isinstance(gone, Committed)
    assert b'"linked_from":["group:x"]' in gone.outcome.body
    with pytest.raises(Refused, match="deleted"):
        ask(chat, 3, type="append", op=3, base="*", messages=[{"mes": "c"}])
    assert isinstance(ask(chat, 3, type="chat-delete", op=2, base=START), Duplicate)
    back = ask(chat, 3, Facts(to="character:Alice/Again"), type="chat-restore", op=3)
    assert isinstance(back, Committed)
    assert (chat.name, chat.deleted) == ("character:Alice/Again", False)
    assert code(ask(chat, 4, type="chat-restore", op=4)) == "exists"


def test_a_creation_that_is_refused_leaves_no_trace_j2() -> None:
    """[J2]"""
    chat = stream()
    with pytest.raises(Refused, match="exists"):
        ask(chat, 1, Facts(refused=("exists", "The name is taken.")), type="chat-create", op=1)
    assert chat.next_op(SESSION) == 1
    ask(chat, 1, type="append", op=1, base="*", messages=[{"mes": "c"}])
    with pytest.raises(Refused, match="exists"):
        ask(chat, 2, type="chat-create", op=1)


def test_a_link_goes_where_it_harms_nothing_j7() -> None:
    """[J7]: an `extra` that is a list is made an object only when it is empty."""
    chat = stream()
    facts = Facts(to="character:Alice/Talk - Branch #1", chat_id="x", integrity=integrity(9))
    for message in ("m0", "m1"):
        made = ask(chat, chat.head.seq + 1, facts, type="chat-branch", op=chat.next_op(SESSION), base="*",
                   message=message)
        assert isinstance(made, Committed)
        assert chat.chat.value(message)["extra"]["branches"] == ["Talk - Branch #1"]
    again = ask(chat, 3, facts, type="chat-branch", op=3, base="*", message="m0", kind="checkpoint")
    assert isinstance(again, Committed)
    assert chat.chat.value("m0")["extra"] == {"branches": ["Talk - Branch #1"], "bookmark_link": "Talk - Branch #1"}
