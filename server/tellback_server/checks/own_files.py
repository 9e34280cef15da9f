"""Own files: what stands in `.tellback`: the log, the term, sessions, names, index, LOCK. Reads only."""

from __future__ import annotations

import os
from collections.abc import Iterator

from tellback_server.checks.documents import (
    check_active,
    check_binding,
    check_flushed,
    check_index,
    check_journal,
    check_name,
    check_owner_copy,
    check_session,
    check_term,
)
from tellback_server.checks.findings import Tally
from tellback_server.checks.kinds import own_kind_of
from tellback_server.checks.log_image import LogImage
from tellback_server.checks.manifests import MANIFEST, REPAIRS, check_repair_file, check_repair_manifest
from tellback_server.checks.reading import read_steady, telling, tells_unsafe
from tellback_server.checks.scope import Scope
from tellback_server.checks.step import Step
from tellback_server.fs import Fs, FsError
from tellback_server.log.inspect import Finding as LogFinding
from tellback_server.log.inspect import Report, verify

__all__ = ["OwnCheck"]


class OwnCheck:
    """The server's own files of one data folder."""

    def __init__(self, fs: Fs, scope: Scope, image: LogImage) -> None:
        self._fs = fs
        self._scope = scope
        self._image = image
        self._files: list[tuple[str, tuple[str, ...], int]] = []

    def plan(self) -> list[int]:
        """Lists the files; the size of each."""
        self._files = []
        self._list(self._scope.own_folder, ())
        return [size_bytes for _path, _parts, size_bytes in self._files]

    def _list(self, folder: str, parts: tuple[str, ...]) -> None:
        try:
            names = self._fs.listdir(folder)
        except FsError:
            return
        for name in names:
            path = os.path.join(folder, name)
            stat = self._fs.stat(path)
            if stat is None:
                continue
            inner = (*parts, name)
            if stat.is_directory and own_kind_of(inner).sort in ("other", "log-aside"):
                self._list(path, inner)
            elif self._scope.holds(path):
                self._files.append((path, inner, stat.size_bytes))

    def run(self, is_served: bool) -> Iterator[Step]:
        """Each file; the log as a whole when its first segment comes."""
        log = self._log(is_served)
        for path, parts, size_bytes in self._files:
            tally = Tally(self._scope.name_of(path))
            with telling(tally):
                self._file(path, parts, is_served, tally)
            for finding in log.pop(path, []):
                _tell_log(finding, tally)
            yield Step(path, size_bytes, tally.take())
        for path, findings in log.items():
            # A file that should be there and is not.
            tally = Tally(self._scope.name_of(path))
            for finding in findings:
                _tell_log(finding, tally)
            yield Step(path, 0, tally.take())

    def _log(self, is_served: bool) -> dict[str, list[LogFinding]]:
        """What is wrong with the log, by file. At a running server a torn end is a batch on its way."""
        if not self._wants_log() or not (self._image.is_there or self._had_log()):
            return {}
        report: Report = verify(self._fs, self._image.directory)
        for _turn in range(3):
            # Old segments may go while they are read.
            if not is_served or report.is_whole:
                break
            report = verify(self._fs, self._image.directory)
        told: dict[str, list[LogFinding]] = {}
        for finding in report.findings:
            if not (is_served and finding.what == "torn-tail"):
                told.setdefault(finding.path, []).append(finding)
        return told

    def _had_log(self) -> bool:
        """Whether a server was at work here, so that a log that is missing was lost or is being repaired."""
        return self._fs.stat(os.path.join(self._scope.own_folder, "term")) is not None

    def _wants_log(self) -> bool:
        only = self._scope.only
        folder = self._image.directory
        return only is None or self._scope.holds(folder) or only.startswith(folder + os.sep)

    def _file(self, path: str, parts: tuple[str, ...], is_served: bool, tally: Tally) -> None:
        stat = self._fs.stat(path)
        if stat is None:
            return
        kind = own_kind_of(parts)
        if kind.sort == "lock":
            if not stat.is_regular:
                tally.add("lock-odd")
            return
        if kind.sort == "other" and parts[:1] != (REPAIRS,):
            return
        if tells_unsafe(stat, tally):
            return
        match kind.sort:
            case "term":
                check_term(read_steady(self._fs, path)[0], tally)
            case "session":
                check_session(read_steady(self._fs, path)[0], parts[-1].removesuffix(".json"), tally)
            case "active":
                check_active(read_steady(self._fs, path)[0], tally)
            case "name":
                check_name(read_steady(self._fs, path)[0], tally)
            case "index":
                check_index(read_steady(self._fs, path)[0], parts[-1].removesuffix(".jsonl"), tally)
            case "binding":
                check_binding(read_steady(self._fs, path)[0], tally)
            case "flushed":
                check_flushed(read_steady(self._fs, path)[0], tally)
            case "owner-copy":
                check_owner_copy(read_steady(self._fs, path)[0], parts[-1], tally)
            case "journal":
                check_journal(read_steady(self._fs, path)[0], tally)
            case "log-tail":
                tally.add("log-saved-tail")
            case "log-aside":
                tally.add("log-put-aside")
            case "temporary" if not is_served:
                tally.add("file-left-over")
            case "other" if len(parts) == 3 and parts[-1] == MANIFEST:
                check_repair_manifest(read_steady(self._fs, path)[0], tally)
            case "other":
                check_repair_file(self._fs, path, tally)
            case _:
                pass


def _tell_log(finding: LogFinding, tally: Tally) -> None:
    if finding.what == "torn-tail":
        tally.add("log-torn-tail", finding.reason, offset=finding.offset)
    elif finding.what == "repairable":
        tally.add("log-bit-flipped", finding.reason, offset=finding.offset)
    elif finding.path.endswith("term"):
        # The term file itself tells this.
        return
    else:
        batch = f"batch {finding.batch}: " if finding.batch else ""
        tally.add("log-corrupt", batch + finding.reason, offset=finding.offset)
