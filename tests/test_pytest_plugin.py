"""The fixture that projects get with the package: for each test a server of its own, started as people start it."""

from __future__ import annotations

from tellback_client import ServerProcess, connect

CHAT = "character:Alice/First meeting"


async def test_a_server_is_killed_and_comes_back_with_what_it_acknowledged(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url) as client:
        chat = await client.open(CHAT, create=True)
        await chat.append({"mes": "stored"})
    tellback_server.kill()
    assert tellback_server.pid is None
    tellback_server.restart()
    async with connect(tellback_server.url) as client:
        assert [message["mes"] for message in (await client.open(CHAT)).messages] == ["stored"]
    tellback_server.stop()
    assert b"stored" in (tellback_server.data / "default-user/chats/Alice/First meeting.jsonl").read_bytes()
    assert "serving" in tellback_server.said()
