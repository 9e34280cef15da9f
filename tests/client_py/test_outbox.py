"""The outbox file: what survives, and what is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from tellback_client.errors import OutboxCorrupt, OutboxInUse
from tellback_client.intents import AppendIntent
from tellback_client.outbox import COMPACTED_OVER_BYTES, Journal, PendingWrite, Record, added, conflicted, done

SESSION = "session-of-the-test"
CHAT_ID = "11111111-1111-4111-8111-111111111111"


def journal(path: Path) -> Journal:
    return Journal(path, lambda: SESSION)


def record(request_id: int, op: int, mes: str = "hi", replaces: int = 0) -> Record:
    pending = PendingWrite(AppendIntent([], lambda: "unused"))
    pending.request_id = request_id
    pending.data = (
        b'{"type":"append","chat":"id:%b","messages":[{"id":"m%d","mes":"%b"}],"id":%d,"op":%d,"base":"*"}'
        % (CHAT_ID.encode(), request_id, mes.encode(), request_id, op)
    )
    return added(CHAT_ID, pending, replaces)


def kept(path: Path) -> list[tuple[int, bool]]:
    outbox = journal(path)
    try:
        return [(entry.request_id, entry.conflicted) for entry in outbox.entries]
    finally:
        outbox.close()


def test_what_has_no_answer_is_there_again_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "outbox"
    outbox = journal(path)
    first, second, third = record(1, 1), record(2, 2, 'say \\"}\\" and \\\\n'), record(3, 3)
    outbox.write([first, second, third, done(1), conflicted(3)])
    outbox.close()

    again = Journal(path, lambda: "never called")

    assert again.session == SESSION
    assert [(entry.request_id, entry.conflicted) for entry in again.entries] == [(2, False), (3, True)]
    assert again.entries[0].data == second.pending.data
    assert again.entries[0].chat_id == CHAT_ID
    again.close()


def test_a_new_attempt_takes_the_place_of_the_old_one_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "outbox"
    outbox = journal(path)
    outbox.write([record(1, 1), record(2, 2), record(5, 3, replaces=1)])
    outbox.close()

    assert kept(path) == [(2, False), (5, False)]


@pytest.mark.parametrize("size_of_the_last_line", range(1, 60, 7))
def test_r47_a_torn_last_line_was_never_sent_and_is_dropped(tmp_path: Path, size_of_the_last_line: int) -> None:
    path = tmp_path / "outbox"
    outbox = journal(path)
    outbox.write([record(1, 1)])
    outbox.close()
    whole = path.read_bytes()
    path.write_bytes(whole + record(2, 2).line[:size_of_the_last_line])

    assert kept(path) == [(1, False)]
    assert path.read_bytes() == whole


def test_a_torn_header_is_a_new_outbox(tmp_path: Path) -> None:
    path = tmp_path / "outbox"
    path.write_bytes(b'{"tellback-out')

    assert kept(path) == []
    assert path.read_bytes() == b'{"tellback-outbox":1,"session":"session-of-the-test"}\n'


def test_r25_damage_before_the_end_is_an_error_and_not_an_empty_outbox(tmp_path: Path) -> None:
    path = tmp_path / "outbox"
    outbox = journal(path)
    outbox.write([record(1, 1), record(2, 2)])
    outbox.close()
    damaged = path.read_bytes().replace(b'"add":1', b'"add:1 ')
    path.write_bytes(damaged)

    with pytest.raises(OutboxCorrupt, match="line 2"):
        journal(path)
    assert path.read_bytes() == damaged
    path.write_bytes(b"not an outbox\n")
    with pytest.raises(OutboxCorrupt, match="first line"):
        journal(path)


def test_an_outbox_has_one_process(tmp_path: Path) -> None:
    outbox = journal(tmp_path / "outbox")

    with pytest.raises(OutboxInUse):
        journal(tmp_path / "outbox")
    outbox.close()
    assert kept(tmp_path / "outbox") == []


def test_an_outbox_without_live_writes_is_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "outbox"
    outbox = journal(path)
    outbox.write([record(1, 1, "x" * COMPACTED_OVER_BYTES), record(2, 2)])
    outbox.write([done(1)])
    assert path.stat().st_size > COMPACTED_OVER_BYTES
    outbox.write([done(2)])

    assert path.stat().st_size < 100
    outbox.write([record(3, 3)])
    outbox.close()
    assert kept(path) == [(3, False)]
