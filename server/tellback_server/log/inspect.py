"""Inspect: what `tellback log dump` and `tellback log verify` say about a log folder. Reads only; takes no lock.

Rules this module keeps:

- It changes nothing, so it may look at the log of a running server, or at one that refuses to open.
- On a running log the end is in motion: what looks like a torn tail there may be a batch on its way.
- `dump` goes as far as the log can be read and ends with one entry that says why it stopped; it does not raise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import msgspec

from tellback_server.fs import Fs, FsError
from tellback_server.log.errors import LogCorrupt
from tellback_server.log.format import BATCH_HEADER_BYTES, decode_record, iterate_records
from tellback_server.log.recovery import Walk, missing_segment
from tellback_server.log.segment import Repair, segment_numbers
from tellback_server.log.term import TermFile

__all__ = ["Finding", "Report", "dump", "open_walk", "verify"]


class Finding(msgspec.Struct, frozen=True, gc=False):
    """One thing that is not as it was written. `what`: "repairable" (one flipped bit), "torn-tail" or "corrupt"."""

    what: str
    path: str
    offset: int
    batch: int
    reason: str


class Report(msgspec.Struct, gc=False):
    """What `verify` found."""

    directory: str
    term: int = 0
    segments: int = 0
    batches: int = 0
    seals: int = 0
    records: int = 0
    bytes: int = 0
    """Bytes of record data."""
    first_position: int = 0
    """0 when no segment could be read."""
    last_position: int = 0
    owners: int = 0
    findings: list[Finding] = msgspec.field(default_factory=list)
    torn_files: list[str] = msgspec.field(default_factory=list)
    """Tails that earlier starts cut and saved aside."""

    @property
    def is_whole(self) -> bool:
        """Whether the next start will find everything that was durable. A torn tail is no loss."""
        return all(finding.what != "corrupt" for finding in self.findings)


def dump(fs: Fs, directory: str) -> Iterator[dict[str, Any]]:
    """One dict for each segment, batch and record, in order, then one {"what": "end", ...}.

    Bodies are not in it, only their sizes: they are users' texts. Memory: one batch.
    """
    walk: Walk | None = None
    try:
        walk, term, _torn = open_walk(fs, directory)
        yield {"what": "term", "term": term.line.term, "oldest": term.line.oldest, "newest": term.line.newest}
        for header, batch in walk.batches():
            if batch is None:
                yield {"what": "segment", "path": walk.path(header.number), **msgspec.structs.asdict(header)}
                continue
            entry = {"what": "batch" if batch.header.record_count else "seal", "offset": batch.offset}
            yield {**entry, **msgspec.structs.asdict(batch.header), "repairs": len(batch.repairs)}
            for count, record in enumerate(iterate_records(batch.body, batch.header.record_count)):
                yield {
                    "what": "record",
                    "position": batch.header.first_position + count,
                    "offset": batch.offset + BATCH_HEADER_BYTES + record.offset,
                    "kind": record.kind,
                    "owner": record.owner.decode("utf-8", "replace"),
                    "seq": record.seq,
                    "size_bytes": record.size_bytes,
                }
    except (LogCorrupt, FsError, ValueError) as error:
        yield {"what": "end", "finding": "corrupt", "reason": str(error)}
        return
    damage = walk.ending.damage if walk.ending is not None else None
    yield {
        "what": "end",
        "finding": "torn-tail" if damage is not None else "clean",
        "reason": damage.reason if damage is not None else "",
        "durable_batch": walk.durable_batch,
        "last_position": walk.next_position - 1,
    }


def verify(fs: Fs, directory: str) -> Report:
    """Reads everything and checks every checksum, those of the single records too. Does not raise for damage."""
    report = Report(directory)
    owners: set[bytes] = set()
    try:
        walk, term, report.torn_files = open_walk(fs, directory)
        report.term = term.line.term
        report.findings += [_repairable(walk.path(n), repair) for n, repair in walk.header_repairs.items()]
        for header, batch in walk.batches():
            path = walk.path(header.number)
            if batch is None:
                report.segments += 1
                report.first_position = report.first_position or header.first_position
                continue
            report.findings += [_repairable(path, repair) for repair in batch.repairs]
            report.batches += batch.header.record_count > 0
            report.seals += batch.header.record_count == 0
            report.bytes += len(batch.body)
            for record in iterate_records(batch.body, batch.header.record_count):
                owners.add(record.owner)
                report.records += 1
                if decode_record(batch.body, record.offset) is None:
                    offset = batch.offset + BATCH_HEADER_BYTES + record.offset
                    raise LogCorrupt(path, offset, "a record does not match its checksum", batch.header.number)
            report.last_position = walk.next_position - 1
    except LogCorrupt as error:
        report.findings.append(Finding("corrupt", error.path, error.offset, error.batch, error.reason))
    except FsError as error:
        report.findings.append(Finding("corrupt", error.path, 0, 0, error.reason))
    except ValueError as error:
        report.findings.append(Finding("corrupt", directory, 0, 0, str(error)))
    else:
        ending = walk.ending
        if ending is not None and ending.damage is not None:
            damage = ending.damage
            report.findings.append(Finding("torn-tail", ending.path, damage.offset, damage.batch, damage.reason))
    report.owners = len(owners)
    return report


def open_walk(fs: Fs, directory: str) -> tuple[Walk, TermFile, list[str]]:
    """A walk with its headers read, the term file, and the paths of saved tails. Raises LogCorrupt, FsError."""
    term = TermFile(fs, os.path.join(os.path.dirname(directory), "term"))
    line = term.load()
    names = fs.listdir(directory)
    numbers = [number for number in segment_numbers(names) if number >= line.oldest]
    missing = missing_segment(numbers, line)
    walk = Walk(fs, directory, numbers)
    if missing:
        raise LogCorrupt(walk.path(missing), 0, "the segment is missing")
    walk.read_headers()
    return walk, term, [os.path.join(directory, name) for name in names if ".log.torn-" in name]


def _repairable(path: str, repair: Repair) -> Finding:
    return Finding("repairable", path, repair.offset, repair.batch, f"bit {repair.bit} flipped")
