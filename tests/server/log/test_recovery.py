"""Recovery against damage: every bit, every length, every order of sectors. Rule ids are those of STORAGE.md."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise

import pytest

from tellback_server.log import LogCorrupt, Record
from tellback_server.log.format import BATCH_HEADER_BYTES, SEGMENT_HEADER_BYTES
from tellback_server.log.segment import Damage, SegmentReader, segment_name
from tests.support.log_workload import DATA, DIRECTORY, Quiet, Workload, open_log, recovered
from tests.support.sim_fs import SimFs

FIRST = f"{DIRECTORY}/{segment_name(1)}"
SMALL = 1024


def nothing(_what: str, _value: int) -> None:
    """No marks are needed here."""


async def small_log(batches: list[int], *, seal: bool = False) -> tuple[SimFs, list[Record]]:
    """A log of a few batches in one segment, as a killed process leaves it: without a seal unless asked for."""
    fs = SimFs(DATA)
    log = open_log(fs, segment_bytes=SMALL)
    log.start(asyncio.get_running_loop(), lambda _position: None, lambda _error: None)
    appended: list[Record] = []
    for count in batches:
        for _ in range(count):
            number = len(appended) + 1
            record = Record(1, "u/c", number, b"body %d" % number)
            appended.append(record)
            log.append(record.kind, record.owner, record.seq, record.body)
        await log.flush()
    killed = SimFs(fs.disk())
    log.close()
    if not seal:
        fs = killed
    return fs, appended


def batch_places(fs: SimFs) -> list[tuple[int, int]]:
    """(offset, size) of each whole batch of the first segment."""
    places: list[tuple[int, int]] = []
    with SegmentReader(fs, FIRST) as reader:
        header = reader.header
        assert header is not None
        offset, number, position, crc = SEGMENT_HEADER_BYTES, 1, 1, 0
        while True:
            batch = reader.batch_at(offset, number, position, crc, header.term)
            if isinstance(batch, Damage):
                return places
            places.append((offset, batch.end - offset))
            offset, number = batch.end, number + 1
            position += batch.header.record_count
            crc = batch.header.header_crc


def damaged(fs: SimFs, path: str, change: dict[int, int]) -> SimFs:
    """A copy in which byte `offset` has the given value."""
    copy = SimFs(fs.disk())
    for offset, value in change.items():
        copy.content(path)[offset] = value
    return copy


async def test_s5_every_bit_flip_is_repaired_or_harmless_and_never_wrong_data() -> None:
    fs, appended = await small_log([1, 2, 1])
    content = bytes(fs.content(FIRST))
    places = batch_places(fs)
    end = places[-1][0] + places[-1][1]
    repaired = cut = untouched = 0
    for bit in range(len(content) * 8):
        offset = bit >> 3
        copy = damaged(fs, FIRST, {offset: content[offset] ^ (1 << (bit & 7))})
        logger = Quiet()
        log = open_log(copy, segment_bytes=SMALL, logger=logger)
        assert [record for _position, record in log.scan()] == appended, f"bit {bit}"
        log.close()
        if "log-bit-repaired" in logger.names():
            repaired += 1
        elif "log-torn-tail-cut" in logger.names():
            assert offset >= end, "only bits behind the last batch may be cut"
            cut += 1
        else:
            untouched += 1
            assert 80 <= offset < SEGMENT_HEADER_BYTES, f"bit {bit} was flipped and nobody said so"
        assert recovered(copy) == appended, "S11: a second start finds the same"
    assert repaired == (80 + end - SEGMENT_HEADER_BYTES) * 8
    assert repaired + cut + untouched == len(content) * 8


async def test_s5_two_flipped_bits_in_one_batch_fail_closed_unless_it_is_the_last() -> None:
    fs, appended = await small_log([1, 2, 1])
    places = batch_places(fs)
    content = bytes(fs.content(FIRST))
    chance = random.Random(3)
    for at, (offset, size) in enumerate(places):
        for _ in range(150):
            one, two = chance.sample(range(BATCH_HEADER_BYTES, size), 2)
            change = {offset + where: content[offset + where] ^ (1 << chance.randrange(8)) for where in (one, two)}
            copy = damaged(fs, FIRST, change)
            before = copy.files()
            if at == len(places) - 1:
                assert recovered(copy) == appended[:3]
                assert any(".torn-" in path for path in copy.files()), "S7: the bytes are kept"
                continue
            with pytest.raises(LogCorrupt) as caught:
                open_log(copy)
            assert (caught.value.path, caught.value.offset, caught.value.batch) == (FIRST, offset, at + 1)
            after = copy.files()
            assert {path: data for path, data in after.items() if not path.endswith("/term")} == {
                path: data for path, data in before.items() if not path.endswith("/term")
            }, "S6: nothing is changed when the log is corrupt"


async def test_s6_after_a_seal_even_the_last_batch_is_vouched_for() -> None:
    fs, _appended = await small_log([1, 2, 1], seal=True)
    offset, size = batch_places(fs)[2]
    copy = damaged(fs, FIRST, {offset + size - 1: 1, offset + size - 2: 2})
    with pytest.raises(LogCorrupt) as caught:
        open_log(copy)
    assert caught.value.batch == 3


async def test_s6_a_lost_batch_header_is_found_missing_by_the_one_behind_it() -> None:
    fs, _appended = await small_log([1, 2, 1])
    for offset, size in batch_places(fs)[:2]:
        for lost in (BATCH_HEADER_BYTES, size):
            copy = damaged(fs, FIRST, dict.fromkeys(range(offset, offset + lost), 0))
            with pytest.raises(LogCorrupt):
                open_log(copy)


async def test_s6_the_last_batch_torn_at_every_byte_is_cut_and_kept_aside() -> None:
    fs, appended = await small_log([1, 2, 2])
    offset, size = batch_places(fs)[-1]
    content = bytes(fs.content(FIRST))
    for kept in range(size):
        copy = damaged(fs, FIRST, dict.fromkeys(range(offset + kept, offset + size), 0))
        found = recovered(copy)
        # Where only one bit is missing the batch is whole again; that is no wrong data.
        assert found in (appended[:3], appended)
        torn = [data for path, data in copy.files().items() if ".torn-" in path]
        if found == appended[:3] and content[offset : offset + kept].strip(b"\0"):
            assert torn == [content[offset : offset + kept].rstrip(b"\0")]
        assert recovered(copy) == found
        assert [data for path, data in copy.files().items() if ".torn-" in path] == torn


async def test_s6_a_truncated_last_segment_is_a_torn_tail() -> None:
    fs, appended = await small_log([1, 2, 2])
    offset, size = batch_places(fs)[-1]
    for kept in range(size):
        copy = SimFs(fs.disk())
        del copy.content(FIRST)[offset + kept :]
        assert recovered(copy) in (appended[:3], appended)


async def test_s6_a_batch_whose_sectors_arrived_out_of_order_is_torn_not_corrupt() -> None:
    fs = SimFs(DATA)
    log = open_log(fs, segment_bytes=16_384)
    log.start(asyncio.get_running_loop(), lambda _position: None, lambda _error: None)
    records = [Record(1, "u/c", number, b"%d" % number * 300) for number in range(1, 21)]
    for record in records[:10]:
        log.append(record.kind, record.owner, record.seq, record.body)
    await log.flush()
    before = bytes(fs.content(FIRST))
    for record in records[10:]:
        log.append(record.kind, record.owner, record.seq, record.body)
    await log.flush()
    after = bytes(fs.content(FIRST))
    log.close()
    first, last = next(i for i in range(len(before)) if before[i] != after[i]), len(after.rstrip(b"\0"))
    borders = [first, *range(first - first % 512 + 512, last, 512), last]
    chance = random.Random(5)
    for _ in range(300):
        content = bytearray(before)
        arrived = 0
        for start, end in pairwise(borders):
            if chance.random() < 0.6:
                content[start:end] = after[start:end]
                arrived += 1
        disk = fs.disk()
        disk[FIRST] = bytes(content)
        found = recovered(SimFs(disk))
        assert found == (records if arrived == len(borders) - 1 else records[:10])


async def test_s3_a_missing_segment_fails_closed() -> None:
    fs = SimFs(DATA)
    workload = Workload(fs, nothing)
    await workload.run([5, 5, 5, 5])
    segments = [path for path in fs.files() if path.endswith(".log")]
    assert len(segments) >= 3
    recovered(fs)
    for path in segments:
        copy = SimFs(fs.disk())
        copy.unlink(path)
        with pytest.raises(LogCorrupt, match="missing") as caught:
            open_log(copy)
        assert caught.value.path == path


async def test_s3_all_segments_missing_is_not_an_empty_log() -> None:
    fs, _appended = await small_log([1])
    fs.unlink(FIRST)
    with pytest.raises(LogCorrupt, match="missing"):
        open_log(fs)


async def test_s3_swapped_segments_fail_closed() -> None:
    fs = SimFs(DATA)
    await Workload(fs, nothing).run([5, 5, 5, 5])
    fs.exchange(f"{DIRECTORY}/{segment_name(1)}", f"{DIRECTORY}/{segment_name(2)}")
    with pytest.raises(LogCorrupt, match="under the name of"):
        open_log(fs)


async def test_s3_an_older_copy_of_a_full_segment_fails_closed() -> None:
    fs = SimFs(DATA)
    workload = Workload(fs, nothing)
    await workload.run([1])
    old = bytes(fs.content(FIRST))
    fs = SimFs(DATA)
    await Workload(fs, nothing).run([1, 5, 5, 5])
    fs.content(FIRST)[:] = old
    with pytest.raises(LogCorrupt):
        open_log(fs)


async def test_s2_the_term_rises_at_every_start_and_survives_the_loss_of_its_file() -> None:
    fs, _appended = await small_log([1])
    terms = []
    for _ in range(3):
        log = open_log(fs)
        terms.append(log.term)
        log.close()
    fs.unlink("/data/.tellback/term")
    log = open_log(fs)
    terms.append(log.term)
    log.close()
    assert terms == [2, 3, 4, 5]


async def test_s2_every_flipped_bit_of_the_term_file_is_repaired() -> None:
    fs, appended = await small_log([1, 1])
    path = "/data/.tellback/term"
    content = bytes(fs.content(path))
    for bit in range(len(content) * 8):
        copy = damaged(fs, path, {bit >> 3: content[bit >> 3] ^ (1 << (bit & 7))})
        log = open_log(copy)
        assert log.term == 2
        assert [record for _position, record in log.scan()] == appended
        log.close()


async def test_s2_an_unreadable_term_file_fails_closed() -> None:
    fs, _appended = await small_log([1])
    fs.content("/data/.tellback/term")[:] = b"tellback-term 1 what\n"
    with pytest.raises(LogCorrupt, match="term file"):
        open_log(fs)


async def test_s9_a_tail_that_nobody_vouches_for_is_copied_to_a_fresh_synced_segment() -> None:
    """RELIABILITY fact 1: after a failed sync the page cache shows what the disk may not have."""
    fs, appended = await small_log([1, 2])
    logger = Quiet()
    log = open_log(fs, logger=logger)
    log.close()
    fields = dict(logger.events)["log-recovered"]
    assert fields["unchecked_batches"] == 1
    # The old segment lost its unsynced page; nothing is missing.
    offset, size = batch_places(fs)[0]
    assert len(fs.content(FIRST)) == offset + size, "S10: the old copy is cut off"
    assert recovered(fs) == appended


async def test_s7_leftovers_of_a_crash_are_removed() -> None:
    fs, appended = await small_log([1, 2])
    for path in (f"{DIRECTORY}/spare.0123.tellback-tmp", "/data/.tellback/.term.0123.tellback-tmp"):
        fs.create(path).close()
    assert recovered(fs) == appended
    assert not [path for path in fs.files() if path.endswith(".tellback-tmp")]


async def test_recovery_does_not_touch_files_it_does_not_know() -> None:
    fs, appended = await small_log([1])
    fs.create(f"{DIRECTORY}/notes.txt").append(b"mine")
    assert recovered(fs) == appended
    assert fs.read(f"{DIRECTORY}/notes.txt") == b"mine"
