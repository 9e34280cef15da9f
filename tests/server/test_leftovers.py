"""Leftovers: what recovery tells while it reads the log is what the records say, and nothing is read twice."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tellback_server.clock import Clock
from tellback_server.fs import Fs
from tellback_server.leftovers import Leftovers
from tellback_server.log import Log, Record
from tellback_server.log.format import RECORD_HEADER_BYTES, RecordHeader
from tellback_server.operations import Operation
from tellback_server.records import DONE, OPERATION, Done, owner_key
from tellback_server.store.files import DEFAULT_USER
from tests.support.chat_desk import Desk

TALK = (DEFAULT_USER, "character:Pip/talk")


async def test_the_records_that_recovery_tells_are_those_of_the_log(tmp_path: Path) -> None:
    """[K5] In order; names, pending chats and operations that were cut off come of them."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    await desk.checkpoint()
    key, head = owner_key(DEFAULT_USER, desk.stream.chat_id), desk.stream.head
    done, cut_off, never = (
        Operation(what="rename", user=DEFAULT_USER, chat_id=desk.stream.chat_id, name=TALK[1], seq=2, integrity=one)
        for one in (head.integrity, "", "d1c5f7d0-1b2c-8d3e-9f4a-000000000005")
    )
    for operation in (done, never):
        desk.log.append(OPERATION, key, 2, msgspec.json.encode(operation))
    desk.log.append(DONE, key, 2, msgspec.json.encode(Done(done.integrity)))
    await desk.append("two")
    cut_off = msgspec.structs.replace(cut_off, integrity=desk.stream.head.integrity)
    desk.log.append(OPERATION, key, 2, msgspec.json.encode(cut_off))
    await desk.append("three")
    desk.stop()

    for is_folded in (False, True):
        leftovers, seen = Leftovers(), list[Record]()

        def see(
            header: RecordHeader, batch: bytes, leftovers: Leftovers = leftovers, seen: list[Record] = seen
        ) -> None:
            start = header.offset + RECORD_HEADER_BYTES + len(header.owner)
            body = batch[start : header.offset + header.size_bytes]
            seen.append(Record(header.kind, header.owner.decode(), header.seq, body))
            leftovers.see(header, batch)

        log = Log.open(Fs(), str(desk.data / ".tellback" / "log"), Clock(), segment_bytes=1 << 16, seen=see)
        records = list(log.scan())
        assert seen == [record for _position, record in records]
        middle = records[len(records) // 2][0]
        assert list(log.scan(middle)) == [one for one in records if one[0] > middle]
        log.close()
        again = Leftovers()
        for record in seen:
            again.add(record)
        for one in (leftovers, again):
            assert one.names == {(DEFAULT_USER, desk.stream.chat_id): TALK[1]}
            assert one.unfolded() == ([] if is_folded else [TALK])
            assert one.unfinished() == [], "its COMMIT has to come behind it"
        await desk.open()
        await desk.checkpoint()
        desk.stop()


async def test_an_operation_counts_once_its_commit_stands_behind_it(tmp_path: Path) -> None:
    """[J4] And until its DONE."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    commits = [record for _position, record in desk.log.scan() if record.kind == 1]
    operation = Operation(
        what="delete", user=DEFAULT_USER, chat_id=desk.stream.chat_id, name=TALK[1], seq=1,
        integrity=desk.stream.head.integrity,
    )
    desk.stop()
    key = commits[0].owner
    leftovers = Leftovers()
    leftovers.add(Record(OPERATION, key, 1, msgspec.json.encode(operation)))
    assert leftovers.unfinished() == []
    leftovers.add(commits[0])
    assert leftovers.unfinished() == [operation]
    leftovers.add(Record(DONE, key, 1, msgspec.json.encode(Done(operation.integrity, gone=True))))
    assert (leftovers.unfinished(), leftovers.unfolded(), leftovers.names) == ([], [], {})
