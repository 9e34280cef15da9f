"""Format: the bytes of the log, and nothing else. No files, no clock, no state.

Rules this module keeps:

- Little-endian, fixed headers. A length is believed only after the CRC of the header that holds it, and only up to the
  bytes that are really there, before anything is allocated.
- The batch is what recovery believes (`body_crc` and `body_adler` over all of it); the CRC of a record is what a single
  read by position believes. See STORAGE.md "Checksums" for why there are two.
- Magic numbers hold bytes that never occur in UTF-8, and header CRCs start from the segment's random salt, so nothing a
  user writes can look like a batch.
- Persisted: keep stable. A change of any layout needs a new VERSION and a reader for the old one.

A segment file:

    0         512                                                         size_bytes
    +---------+----------+----------+-- ... --+--------------------------+
    | header  | batch    | batch    |         | zeros                    |
    +---------+----------+----------+-- ... --+--------------------------+

Segment header (80 bytes, then zeros up to 512):

    0        8            12        16       24            32               40
    +--------+------------+---------+--------+-------------+----------------+
    | magic  | header_crc | version | number | first_batch | first_position |
    +--------+------------+---------+--------+-------------+----------------+
    40     48              56     60             64           72           80
    +------+---------------+------+--------------+------------+------------+
    | term | durable_batch | salt | previous_crc | created_ms | size_bytes |
    +------+---------------+------+--------------+------------+------------+

Batch (64 bytes of header, then the body):

    0       4            8             12             16       24              32
    +-------+------------+-------------+--------------+--------+---------------+
    | magic | header_crc | body_length | record_count | number | durable_batch |
    +-------+------------+-------------+--------------+--------+---------------+
    32               40     48         52           56             60         64
    +----------------+------+----------+------------+--------------+----------+-- ... --+
    | first_position | term | body_crc | body_adler | previous_crc | reserved | records |
    +----------------+------+----------+------------+--------------+----------+-- ... --+

Record (20 bytes of header, then owner key and body):

    0     4             8     16             18     19         20
    +-----+-------------+-----+--------------+------+----------+-- ... --+-- ... --+
    | crc | body_length | seq | owner_length | kind | reserved | owner   | body    |
    +-----+-------------+-----+--------------+------+----------+-- ... --+-- ... --+
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final, NewType, TypeVar

import msgspec

from tellback_server.one_bit import flipped_bit, unflipped

__all__ = [
    "BATCH_HEADER_BYTES",
    "BATCH_MAGIC",
    "BODY_BYTES_MAX",
    "OWNER_BYTES_MAX",
    "RECORD_HEADER_BYTES",
    "SEGMENT_HEADER_BYTES",
    "VERSION",
    "BatchHeader",
    "Position",
    "Record",
    "RecordHeader",
    "SegmentHeader",
    "body_is_whole",
    "decode_batch_header",
    "decode_record",
    "decode_segment_header",
    "encode_batch",
    "encode_record",
    "encode_record_head",
    "encode_segment_header",
    "iterate_records",
    "record_size",
    "repair_batch_header",
    "repair_body",
    "repair_segment_header",
]

Position = NewType("Position", int)
"""The number of a record: 1, 2, 3, ... over the whole life of a data folder."""

_Header = TypeVar("_Header")

VERSION: Final = 1
BODY_BYTES_MAX: Final = 64 << 20  # A chat of 50 MB must fit into one record when it is imported whole.
OWNER_BYTES_MAX: Final = 1024  # User name, slash, chat id or an encoded path.

SEGMENT_MAGIC: Final = b"\xf5TBSEG\xfa\n"
BATCH_MAGIC: Final = b"\xf5TB\xfa"

SEGMENT_HEADER_BYTES: Final = 512  # A sector of its own: no batch ever shares a sector with the segment header.
_SEGMENT_STRUCT: Final = struct.Struct("<8sIIQQQQQIIQQ")
_SEGMENT_TAIL: Final = struct.Struct("<IQQQQQIIQQ")

_BATCH_STRUCT: Final = struct.Struct("<4sIIIQQQQIIII")
_BATCH_TAIL: Final = struct.Struct("<IIQQQQIIII")
BATCH_HEADER_BYTES: Final = _BATCH_STRUCT.size

_RECORD_STRUCT: Final = struct.Struct("<IIQHBB")
_RECORD_TAIL: Final = struct.Struct("<IQHBB")
_CRC_STRUCT: Final = struct.Struct("<I")
RECORD_HEADER_BYTES: Final = _RECORD_STRUCT.size

assert _SEGMENT_STRUCT.size == 80
assert BATCH_HEADER_BYTES == 64
assert RECORD_HEADER_BYTES == 20


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record, as the owner of the log gave it.

    `kind` (0 to 255) and `body` mean something to the writer of the record only. `owner` is a key such as
    "default-user/<chat_id>", `seq` (0 to 2^64 - 1) the owner's own numbering.
    """

    kind: int
    owner: str
    seq: int
    body: bytes


class RecordHeader(msgspec.Struct, frozen=True, gc=False):
    """Where a record lies inside a batch body, and what its header says."""

    offset: int
    size_bytes: int
    kind: int
    owner: bytes
    seq: int


class SegmentHeader(msgspec.Struct, frozen=True, gc=False):
    """The first bytes of a segment file. Immutable once the file has its final name."""

    number: int
    first_batch: int
    """The batch this segment begins with. What an older segment holds from this number on is superseded."""
    first_position: int
    term: int
    durable_batch: int
    """The highest batch known durable when the file got its name: everything before `first_batch`, or a copied tail."""
    salt: int
    previous_crc: int
    """`header_crc` of batch `first_batch - 1`; 0 before the first batch of all."""
    created_ms: int
    size_bytes: int


class BatchHeader(msgspec.Struct, frozen=True, gc=False):
    """The header of one group commit. `header_crc` is the link in the chain: the next batch carries it."""

    body_length: int
    record_count: int
    """0 for a seal: a batch that only says that what came before it is durable."""
    number: int
    durable_batch: int
    first_position: int
    """Position of the first record; of the next record to come in a seal."""
    term: int
    body_crc: int
    body_adler: int
    previous_crc: int
    header_crc: int


def encode_segment_header(header: SegmentHeader) -> bytes:
    """512 bytes."""
    tail = _SEGMENT_TAIL.pack(
        VERSION,
        header.number,
        header.first_batch,
        header.first_position,
        header.term,
        header.durable_batch,
        header.salt,
        header.previous_crc,
        header.created_ms,
        header.size_bytes,
    )
    head = SEGMENT_MAGIC + _CRC_STRUCT.pack(zlib.crc32(tail)) + tail
    return head.ljust(SEGMENT_HEADER_BYTES, b"\0")


def decode_segment_header(data: bytes) -> SegmentHeader | None:
    """The header in the first 80 bytes of `data`, or None when its magic, CRC or version is wrong."""
    if len(data) < _SEGMENT_STRUCT.size:
        return None
    magic, crc, version, *fields = _SEGMENT_STRUCT.unpack_from(data)
    if magic != SEGMENT_MAGIC or zlib.crc32(data[12 : _SEGMENT_STRUCT.size]) != crc or version != VERSION:
        return None
    return SegmentHeader(*fields)


def encode_batch(
    body: bytes | memoryview,
    *,
    record_count: int,
    number: int,
    durable_batch: int,
    first_position: int,
    term: int,
    previous_crc: int,
    salt: int,
) -> tuple[bytes, int]:
    """The 64 bytes before `body`, and their CRC, which the next batch carries as `previous_crc`."""
    tail = _BATCH_TAIL.pack(
        len(body),
        record_count,
        number,
        durable_batch,
        first_position,
        term,
        zlib.crc32(body),
        zlib.adler32(body),
        previous_crc,
        0,
    )
    crc = zlib.crc32(tail, salt)
    return BATCH_MAGIC + _CRC_STRUCT.pack(crc) + tail, crc


def decode_batch_header(data: bytes, salt: int, offset: int = 0) -> BatchHeader | None:
    """The batch header at `offset` in `data`, or None when magic or CRC is wrong or the bytes do not suffice."""
    if len(data) - offset < BATCH_HEADER_BYTES:
        return None
    (magic, crc, body_length, count, number, durable, position, term, body_crc, body_adler, previous, _reserved) = (
        _BATCH_STRUCT.unpack_from(data, offset)
    )
    if magic != BATCH_MAGIC or zlib.crc32(data[offset + 8 : offset + BATCH_HEADER_BYTES], salt) != crc:
        return None
    return BatchHeader(body_length, count, number, durable, position, term, body_crc, body_adler, previous, crc)


def body_is_whole(header: BatchHeader, body: bytes) -> bool:
    """Whether `body` is what was written behind `header`."""
    return (
        len(body) == header.body_length
        and zlib.crc32(body) == header.body_crc
        and zlib.adler32(body) == header.body_adler
    )


def encode_record(kind: int, owner: bytes, seq: int, body: bytes) -> bytes:
    """One record. Raises struct.error when kind, seq or a length does not fit its field."""
    return encode_record_head(kind, owner, seq, body) + body


def encode_record_head(kind: int, owner: bytes, seq: int, body: bytes) -> bytes:
    """What stands before `body` in a record: it is copied once only, into its batch. As `encode_record`."""
    tail = _RECORD_TAIL.pack(len(body), seq, len(owner), kind, 0) + owner
    return _CRC_STRUCT.pack(zlib.crc32(body, zlib.crc32(tail))) + tail


def decode_record(data: bytes, offset: int = 0) -> Record | None:
    """The record at `offset` in `data`, or None when its CRC is wrong or bytes are missing."""
    have = len(data) - offset
    if have < RECORD_HEADER_BYTES:
        return None
    crc, body_length, seq, owner_length, kind, _reserved = _RECORD_STRUCT.unpack_from(data, offset)
    end = RECORD_HEADER_BYTES + owner_length + body_length
    if end > have or zlib.crc32(data[offset + 4 : offset + end]) != crc:
        return None
    start = offset + RECORD_HEADER_BYTES
    owner = data[start : start + owner_length].decode()
    return Record(kind, owner, seq, data[start + owner_length : offset + end])


def record_size(data: bytes, offset: int = 0) -> int:
    """The whole size in bytes of the record whose 20 header bytes stand at `offset`, as its unchecked header says."""
    _crc, body_length, _seq, owner_length, _kind, _reserved = _RECORD_STRUCT.unpack_from(data, offset)
    size: int = RECORD_HEADER_BYTES + owner_length + body_length
    return size


def iterate_records(body: bytes, count: int) -> Iterator[RecordHeader]:
    """The headers of the records of a batch whose checksums were found right.

    Raises ValueError when they do not fill the body exactly: then the writer had a bug.
    """
    offset = 0
    end = len(body)
    unpack_from = _RECORD_STRUCT.unpack_from
    for _ in range(count):
        if end - offset < RECORD_HEADER_BYTES:
            raise ValueError("a record header is cut off")
        _crc, body_length, seq, owner_length, kind, _reserved = unpack_from(body, offset)
        size = RECORD_HEADER_BYTES + owner_length + body_length
        start = offset + RECORD_HEADER_BYTES
        yield RecordHeader(offset, size, kind, body[start : start + owner_length], seq)
        offset += size
    if offset != end:
        raise ValueError("the records do not fill the batch")


# One-bit repair (RELIABILITY fact 4).


def repair_segment_header(data: bytes) -> tuple[SegmentHeader, int] | None:
    """The header that `data` was before one bit of it flipped, and that bit's number, or None."""
    return _repair_by_trying(data[: _SEGMENT_STRUCT.size], decode_segment_header)


def repair_batch_header(data: bytes, salt: int) -> tuple[BatchHeader, int] | None:
    """The batch header that the 64 bytes were before one bit flipped, and that bit's number, or None."""
    return _repair_by_trying(data[:BATCH_HEADER_BYTES], lambda candidate: decode_batch_header(candidate, salt))


def _repair_by_trying(data: bytes, decode: Callable[[bytes], _Header | None]) -> tuple[_Header, int] | None:
    """Tries each bit; a header is a few hundred bits."""
    candidate = bytearray(data)
    for bit in range(len(data) * 8):
        candidate[bit >> 3] ^= 1 << (bit & 7)
        header = decode(bytes(candidate))
        if header is not None:
            return header, bit
        candidate[bit >> 3] ^= 1 << (bit & 7)
    return None


def repair_body(header: BatchHeader, body: bytes) -> tuple[bytes, int] | None:
    """The body that `body` was before one bit of it flipped, and that bit's number, or None.

    A torn batch of n bits passes the search by chance with n / 2^32; the Adler-32 of the whole body, which is not
    linear in the same field, has to agree as well.
    """
    if len(body) != header.body_length:
        return None
    result = unflipped(body, header.body_crc)
    if result is None or not body_is_whole(header, result):
        return None
    bit = flipped_bit(len(body), zlib.crc32(body) ^ header.body_crc)
    assert bit is not None, "it was turned back"
    return result, bit
