"""The real SillyTavern folder: a copy to work in, and what its README counts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.shared import shared_folder

COUNTS = {
    "chats/Kapitän Jonas Thale/Kapitän Jonas Thale - 2024-03-01@06h00m00s.jsonl": 3000,
    "chats/Kapitän Jonas Thale/Kapitän Jonas Thale - 2024-10-02@21h05m00s.jsonl": 0,
    "chats/Kapitän Jonas Thale/Kapitän Jonas Thale - 2024-10-03@08h00m12s.jsonl": 1,
    "chats/Kapitän Jonas Thale/The lighthouse winter.jsonl": 35,
    "chats/Mirelle Ashgrove/Branch #200 - 2024-09-30@18h44m02s.jsonl": 201,
    "chats/Mirelle Ashgrove/Checkpoint #1 - 2024-09-30@10h02m11s.jsonl": 151,
    "chats/Mirelle Ashgrove/Mirelle Ashgrove - 2023-6-19 @14h 20m 07s 31ms.jsonl": 12,
    "chats/Mirelle Ashgrove/Mirelle Ashgrove - 2024-09-28@09h30m00s.jsonl": 300,
    "chats/Pip/Pip - 2024-09-30@09h00m00s.jsonl": 29,
    "chats/Pip/Pip - 2024-11-01@12h00m00s.jsonl": 26,
    "chats/Pip/Pip - 2026-11-21 @02h 45m 31s 341ms imported.jsonl": 6,
    "chats/佐藤ひなこ/佐藤ひなこ - 2024-07-01@10h00m00s.jsonl": 465,
    "chats/佐藤ひなこ/佐藤ひなこ - 2025-06-11@04h00m00s.jsonl": 24,
    "chats/佐藤ひなこ/佐藤ひなこ - 2025-1-5@13h05m09s123ms.jsonl": 80,
    "group chats/2024-10-12@19h00m00s.jsonl": 48,
    "group chats/2025-09-02@20h15m00s.jsonl": 33,
}
"""Messages in each chat, as the real server listed them (the README's table)."""


def real_user() -> Path:
    """The user's folder; its files are read only. TELLBACK_REAL_DATA names another place for `sillytavern/`."""
    named = os.environ.get("TELLBACK_REAL_DATA")
    folder = (Path(named) if named else shared_folder() / "data" / "sillytavern") / "default-user"
    if not folder.is_dir():
        pytest.fail(f"the real data is missing: {folder}; set TELLBACK_REAL_DATA")
    return folder


def copy_real_data(root: Path) -> Path:
    """A data folder with a writable copy of the user."""
    data = root / "data"
    shutil.copytree(real_user(), data / "default-user", copy_function=shutil.copyfile)
    return data


def tree(root: Path) -> dict[str, tuple[bytes, int, int]]:
    """Everything below `root`: bytes, mtime and inode of each file."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        if path.is_file()
        else (b"", path.stat().st_mtime_ns, path.stat().st_ino)
        for path in sorted(root.rglob("*"))
    }
