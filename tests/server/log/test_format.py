"""Format: bytes in, values out, and nothing believed that was not checked."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tellback_server.log.format import (
    BATCH_HEADER_BYTES,
    BATCH_MAGIC,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Record,
    SegmentHeader,
    body_is_whole,
    decode_batch_header,
    decode_record,
    decode_segment_header,
    encode_batch,
    encode_record,
    encode_segment_header,
    iterate_records,
    record_size,
    repair_batch_header,
    repair_body,
    repair_segment_header,
)

U8 = st.integers(0, 255)
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
RECORDS = st.builds(Record, U8, st.text(max_size=40), U64, st.binary(max_size=300))
SEGMENTS = st.builds(SegmentHeader, U64, U64, U64, U64, U64, U32, U32, U64, U64)
SPEC = (Path(__file__).resolve().parents[3] / "spec" / "STORAGE.md").read_text()


def batch_of(records: list[Record], salt: int = 7) -> tuple[bytes, bytes]:
    """Header and body of a batch with these records."""
    body = b"".join(encode_record(r.kind, r.owner.encode(), r.seq, r.body) for r in records)
    head, _crc = encode_batch(
        body,
        record_count=len(records),
        number=5,
        durable_batch=4,
        first_position=11,
        term=2,
        previous_crc=99,
        salt=salt,
    )
    return head, body


@given(RECORDS, st.binary(max_size=30))
def test_a_record_survives_its_bytes(record: Record, before: bytes) -> None:
    data = encode_record(record.kind, record.owner.encode(), record.seq, record.body)
    assert len(data) == RECORD_HEADER_BYTES + len(record.owner.encode()) + len(record.body)
    assert decode_record(before + data + b"more", len(before)) == record
    assert record_size(data) == len(data)


@given(SEGMENTS)
def test_a_segment_header_survives_its_bytes(header: SegmentHeader) -> None:
    data = encode_segment_header(header)
    assert len(data) == SEGMENT_HEADER_BYTES
    assert decode_segment_header(data) == header


@given(st.lists(RECORDS, max_size=6), U32)
def test_a_batch_survives_its_bytes(records: list[Record], salt: int) -> None:
    head, body = batch_of(records, salt)
    header = decode_batch_header(b"xx" + head, salt, 2)
    assert header is not None
    assert body_is_whole(header, body)
    assert (header.number, header.durable_batch, header.first_position, header.term) == (5, 4, 11, 2)
    assert header.header_crc == struct.unpack_from("<I", head, 4)[0]
    seen: list[Record | None] = []
    for found in iterate_records(body, header.record_count):
        wanted = records[len(seen)]
        assert (found.kind, found.seq, found.owner.decode()) == (wanted.kind, wanted.seq, wanted.owner)
        seen.append(decode_record(body, found.offset))
    assert seen == records


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_never_taken_for_anything(data: bytes) -> None:
    assert decode_segment_header(data) is None
    assert decode_batch_header(data, 1) is None
    assert decode_record(data) is None or zlib.crc32(data[4 : record_size(data)]) == struct.unpack_from("<I", data)[0]


def test_a_header_of_another_segment_is_not_a_header_here() -> None:
    head, _body = batch_of([], salt=1)
    assert decode_batch_header(head, 1) is not None
    assert decode_batch_header(head, 2) is None


def test_a_newer_version_is_not_read() -> None:
    data = bytearray(encode_segment_header(SegmentHeader(1, 1, 1, 1, 0, 1, 0, 1, 1)))
    data[12] = 2
    data[8:12] = struct.pack("<I", zlib.crc32(data[12:80]))
    assert decode_segment_header(bytes(data)) is None


def test_records_that_do_not_fill_the_batch_are_a_bug_that_is_seen() -> None:
    _head, body = batch_of([Record(1, "a", 1, b"x")])
    for wrong, count in ((body + b"y", 1), (body[:-1], 1), (body, 2), (body[:10], 1), (body, 0)):
        with pytest.raises(ValueError, match="record"):
            list(iterate_records(wrong, count))


def test_s5_every_flipped_bit_of_a_header_is_found() -> None:
    segment = SegmentHeader(3, 40, 500, 6, 39, 77, 88, 99, 4096)
    data = encode_segment_header(segment)
    for bit in range(80 * 8):
        broken = bytearray(data)
        broken[bit >> 3] ^= 1 << (bit & 7)
        assert decode_segment_header(bytes(broken)) is None
        assert repair_segment_header(bytes(broken)) == (segment, bit)
    head, _body = batch_of([])
    header = decode_batch_header(head, 7)
    for bit in range(BATCH_HEADER_BYTES * 8):
        broken = bytearray(head)
        broken[bit >> 3] ^= 1 << (bit & 7)
        assert repair_batch_header(bytes(broken), 7) == (header, bit)


@pytest.mark.parametrize("size", [1, 2, 3, 64, 1000])
def test_s5_every_flipped_bit_of_a_body_is_found(size: int) -> None:
    body = random.Random(size).randbytes(size)
    head, _crc = encode_batch(
        body, record_count=1, number=1, durable_batch=0, first_position=1, term=1, previous_crc=0, salt=7
    )
    header = decode_batch_header(head, 7)
    assert header is not None
    for bit in range(size * 8):
        broken = bytearray(body)
        broken[bit >> 3] ^= 1 << (bit & 7)
        assert repair_body(header, bytes(broken)) == (body, bit)


def test_s5_what_is_not_one_flipped_bit_is_not_repaired() -> None:
    chance = random.Random(1)
    head, body = batch_of([Record(1, "u/c", number, chance.randbytes(400)) for number in range(20)])
    header = decode_batch_header(head, 7)
    assert header is not None
    for _ in range(300):
        broken = bytearray(body)
        start = chance.randrange(len(body) - 1)
        end = min(len(body), start + chance.choice((2, 17, 512, 4096)))
        broken[start:end] = bytes(end - start) if chance.random() < 0.5 else chance.randbytes(end - start)
        if sum((a ^ b).bit_count() for a, b in zip(broken, body, strict=True)) > 1:
            assert repair_body(header, bytes(broken)) is None
    assert repair_body(header, body) is None, "nothing to repair"
    assert repair_body(header, body[:-1]) is None


def test_the_magic_numbers_never_occur_in_text() -> None:
    for byte in (BATCH_MAGIC[0], BATCH_MAGIC[-1]):
        with pytest.raises(UnicodeDecodeError):
            bytes([byte]).decode()
    assert " ".join(f"{byte:02X}" for byte in BATCH_MAGIC) in SPEC
