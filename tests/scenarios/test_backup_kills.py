"""kill -9 at every step of a backup and of a restore: afterwards the chat is wholly as it was or wholly as the backup
holds it, and earlier backups are whole.
"""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.forked_server import ForkedServer
from tests.support.server import TabClient, texts
from tests.support.waiting import until

CHAT = "character:アリス/chat"
FOLDER = "default-user/chats/アリス"
STEPS = ["operation.begin", "operation.after_log", "operation.end", "operation.after_done",
         "log.before_write@1", "log.after_write@1", "log.before_tell@2"]
KILLS = {
    "create": ["backup.after_file@1", "backup.before_manifest", "backup.after_manifest"],
    "in-place": [
        *STEPS, "backup.after_file@1", "backup.after_manifest", "backup.before_manifest",
        *(f"operation.after_exchange@{n}" for n in (1, 2)), *(f"operation.after_replace@{n}" for n in (1, 2)),
        "operation.after_written",
    ],
    "out-of-trash": [
        *STEPS, *(f"operation.after_link@{n}" for n in (1, 2)), "operation.after_moves", "operation.after_written",
        "operation.after_names",
    ],
    "beside": [*STEPS, *(f"operation.after_link@{n}" for n in (1, 3)), "operation.after_unlink@2",
               "operation.after_moves"],
}

TWICE = ("operation.begin", "operation.after_exchange@1", "operation.after_replace@2", "operation.after_link@1",
         "operation.after_names", "operation.end")
"""Steps that the recovery is killed at, too."""


def files_of(data: Path, name: str = "chat") -> dict[str, bytes]:
    folder = data / FOLDER
    return {} if not folder.exists() else {
        path.name.removeprefix(name): path.read_bytes() for path in sorted(folder.iterdir())
        if path.name.startswith(name + ".") and "chat_sync" not in path.name
    }


def whole_backups(data: Path) -> int:
    """Every manifest's files are what it says; how many there are."""
    count = 0
    for path in (data / "default-user/backups/tellback").glob("*/*.json"):
        if path.name.count(".") > 1:
            continue
        for kept in json.loads(path.read_text())["files"].values():
            content = (path.parent / kept["file"]).read_bytes()
            assert (len(content), zlib.crc32(content)) == (kept["size_bytes"], kept["crc32"])
        count += 1
    return count


async def prepared(server: ForkedServer, data: Path) -> dict[str, Any]:
    """A chat with a state, a backup of it, and what came afterwards; everything in its files."""
    await server.start_on(data)
    tab = await TabClient.join(server.url)
    await tab.open(CHAT, create=True)
    await tab.append(CHAT, "one", "two")
    await tab.write_state("state-update", CHAT, namespace="memory", base=None, set={"n": 1})
    created = await tab.ask("backup-create", chat=CHAT)
    before = files_of(data)
    await tab.append(CHAT, "three")
    await tab.write_state("state-update", CHAT, namespace="memory", base="*", merge={"n": 2})
    await tab.write_state("state-update", CHAT, namespace="later", base=None, set=[1])
    await tab.ask("backup-create", chat=CHAT)
    after = files_of(data)
    found = {"backup": created["backup"]["backup"], "id": created["chat_id"], "before": before, "after": after,
             "session": tab.session, "op": tab.ops[CHAT], "head": (await tab.open(CHAT))["head"]}
    await tab.close()
    assert await server.stop() == 0
    return found


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", KILLS)
async def test_a_kill_leaves_all_of_a_restore_or_nothing_z8(tmp_path: Path, kind: str) -> None:
    """[Z8]: at each step, and for steps that the recovery takes too, killed there once more."""
    async with ForkedServer(tmp_path / "unused", checkpoint_interval_s=0.05, backup_interval_s=0) as server:
        template = tmp_path / "template"
        was = await prepared(server, template)
        for step in KILLS[kind]:
            for again in (False, True):
                if again and step not in TWICE:
                    continue
                data = tmp_path / f"{step}-{again}"
                await server.kill()
                shutil.copytree(template, data)
                try:
                    await one_kill(server, data, kind, step, was, again=again)
                except Exception as error:
                    error.add_note(f"killed at {step}{' and again in the recovery' if again else ''}")
                    raise
                await server.kill()
                shutil.rmtree(data)


async def one_kill(
    server: ForkedServer, data: Path, kind: str, step: str, was: dict[str, Any], *, again: bool
) -> None:
    address, op = f"id:{was['id']}", was["op"] + 1
    if kind == "out-of-trash":
        await server.start_on(data)
        tab = await TabClient.join(server.url, was["session"])
        deleted = await tab.ask("chat-delete", chat=address, op=op, base=was["head"]["integrity"], force=True)
        assert deleted["type"] == "ack", deleted
        op += 1
        await tab.close()
        await server.stop()
    request: dict[str, Any] = {"type": "backup-restore", "chat": address, "op": op, "backup": was["backup"]}
    if kind == "create":
        request = {"type": "backup-create", "chat": address}
    elif kind == "beside":
        request["to"] = "beside"
    else:
        request["base"] = "*"
    name, _, nth = step.partition("@")
    acked = False
    try:
        await server.start_on(data, f"{name}=kill@{nth or 1}")
        tab = await TabClient.join(server.url, was["session"])
        if kind in ("create", "in-place"):
            # Something new for the backup before it.
            request["op"] = op + 1
            assert (await tab.ask("append", chat=address, op=op, base="*", messages=[{"mes": "four"}]))["type"] == "ack"
        answer = await tab.ask(**request)
        acked = answer["type"] in ("ack", "backup-created")
        assert acked, answer
    except (ConnectionClosed, OSError):
        await server.ended()
        if again:
            await server.start_dying(f"{name}=kill")
    else:
        assert step.startswith("log."), "the step was never taken"
    await server.start_on(data)
    assert whole_backups(data) >= 2
    tab = await TabClient.join(server.url, was["session"])
    if kind == "create":
        assert texts((await tab.open(address))["messages"])[:3] == ["one", "two", "three"]
        assert (await tab.ask("backup-create", chat=address))["type"] == "backup-created"
        return
    if step.startswith("log.") and request["op"] == op + 1:
        # It may be the append that was cut off.
        await tab.ask("append", chat=address, op=op, base="*", messages=[{"mes": "four"}])
    now = files_of(data, "beside" if kind == "beside" else "chat")
    is_done = now == was["before"]
    if not is_done:
        if kind == "in-place":
            opened = await tab.open(address)
            assert texts(opened["messages"])[:3] == ["one", "two", "three"]
            states = await tab.ask("state-get", owner={"chat": address}, namespaces=["memory", "later"])
            assert [states["states"][ns]["data"] for ns in ("memory", "later")] == [{"n": 2}, [1]]
        else:
            assert now == {}
    assert is_done or not acked
    outcome = await tab.ask(**request)
    assert outcome["type"] == "ack", outcome
    assert outcome.get("duplicate", False) == is_done
    assert files_of(data, "beside" if kind == "beside" else "chat") == was["before"]
    made = "character:アリス/beside" if kind == "beside" else CHAT
    opened = await tab.open(made)
    assert texts(opened["messages"]) == ["one", "two"]
    told = outcome["branch"]["version"] if kind == "beside" else outcome["restored"]["version"]
    assert opened["head"] == told
    assert (await tab.append(made, "on"))["version"]["epoch"] == told["epoch"]
    # A checkpoint of what was just written may be under way.
    await until(lambda: not [path for path in (data / FOLDER).iterdir() if path.name.endswith(".tellback-tmp")])
    await tab.close()
