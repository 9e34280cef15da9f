"""`tellback status` as a subprocess."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from tests.support import warm
from tests.support.server import Process, TabClient
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"


def status(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    return warm.run("status", *arguments)


async def test_status_tells_how_far_each_store_is_behind(tmp_path: Path) -> None:
    """[SM9]."""
    backup = f"sqlite://{tmp_path}/backup.db?busy_timeout_ms=20"
    flags = ("--store", "multi", "--primary", f"sqlite://{tmp_path}/primary.db", "--backup", backup,
             "--flush-interval", "0.05")
    async with Process(tmp_path / "data", *flags) as server:
        tab = await TabClient.join(server.url)
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one")

        def states() -> list[str]:
            return [one["state"] for one in json.loads(status("--json", "--url", server.url)[1])["stores"]]

        await until(lambda: states() == ["up", "up"])
        locker = sqlite3.connect(tmp_path / "backup.db", isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
        await tab.append(CHAT, "two")
        await until(lambda: states() == ["up", "away"])
        code, out, errors = status("--url", server.url)
        assert (code, errors) == (0, "")
        assert "takes writes; the backup has not been reached for" in out
        rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith(("primary", "backup"))}
        assert (rows["primary"][1:3], rows["backup"][1:3]) == (["sqlite", "up"], ["sqlite", "away"])
        assert int(rows["backup"][5]) > 0
        locker.execute("ROLLBACK")
        locker.close()


def test_what_cannot_be_asked_is_a_sentence() -> None:
    code, out, errors = status("--url", "ws://127.0.0.1:1/ws")
    assert (code, out) == (69, "")
    assert errors.startswith("tellback: ws://127.0.0.1:1/ws cannot be reached: ")
    code, _out, errors = status("--url", "nonsense")
    assert code == 78
    assert "is no address" in errors


async def test_a_server_on_folders_has_no_stores(tmp_path: Path) -> None:
    async with Process(tmp_path / "data") as server:
        code, out, _errors = status("--json", "--url", server.url)
    assert code == 0
    told = json.loads(out)
    assert (told["ready"], told["stores"]) == (True, [])
