"""A store that somebody else wrote: built and installed as a package, certified with the exported suite, and used."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import Process, TabClient
from tests.support.waiting import GUARD_S

PLUGIN = Path(__file__).resolve().parents[1] / "plugins/ledger_store"
CHAT = "character:Alice/First meeting"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip installed it."""
    target = tmp_path_factory.mktemp("site")
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation",
        "--disable-pip-version-check", "--root-user-action=ignore", "--target", str(target), str(PLUGIN),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return target


def environment(site: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))}


def test_a_package_of_somebody_else_is_certified_with_the_suite(site: Path, tmp_path: Path) -> None:
    """[ST1] to [ST10], but for what an append costs: it says itself that it writes chats whole."""
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--rootdir", str(tmp_path),
            "-c", os.devnull, "--basetemp", str(tmp_path / "base"), str(PLUGIN / "certify.py"),
        ],
        env={**os.environ, **environment(site)}, capture_output=True, text=True, check=False, timeout=100,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


async def test_it_is_a_backup_of_the_users_folder(site: Path, tmp_path: Path) -> None:
    """[SM2] a server that nobody told of the package but by the URL."""
    ledger = tmp_path / "chats.ledger"
    flags = ("--store", "multi", "--primary", "files", "--backup", f"ledger://{ledger}", "--flush-interval", "0.05")
    (tmp_path / "data").mkdir()
    async with Process(tmp_path / "data", *flags, environment=environment(site)) as server:
        tab = await TabClient.join(server.url)
        await tab.open(CHAT, create=True)
        assert (await tab.append(CHAT, "kept by somebody else"))["type"] == "ack"
        status = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-m", "tellback_server", "status", "--json", "--url", server.url],
            capture_output=True, text=True, check=False, timeout=GUARD_S,
        )
        assert status.returncode == 0, status.stderr
        stores = json.loads(status.stdout)["stores"]
        assert [(one["store"], one["kind"]) for one in stores] == [("primary", "files"), ("backup", "ledger")]
        assert await server.stop() == 0
    saves = [entry for entry in entries(ledger) if entry[0] == "save"]
    assert bytes.fromhex(saves[-1][3]["name"]).decode() == CHAT


def entries(ledger: Path) -> list[list[dict[str, str]]]:
    """What the ledger holds, read by hand."""
    return [json.loads(line.partition(b" ")[2]) for line in ledger.read_bytes().splitlines()]
