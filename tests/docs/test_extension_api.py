"""Every name of the seed's extension API stands in the table of docs/EXTENSION_API.md, and is what the table says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from tellback_client.context import (
    FRONT_END,
    Context,
    EventSource,
    EventTypes,
    FloorState,
    FrontEndBusiness,
    Swipes,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "EXTENSION_API.md"


def _words(text: str) -> list[str]:
    return text.split()


SEED = _words("""
getContext
chat characters groups name1 name2 characterId groupId chat_metadata online_status
addMessages updateMessages deleteMessages getMessage getMessageCount
addOneMessage deleteLastMessage deleteMessage updateMessageBlock patchChatMessages appendChatMessages
saveChatMetadata
getChatState getChatStateBatch updateChatState patchChatState deleteChatState
createFloorState instance.update instance.patch instance.get instance.ready instance.destroy
buildObjectPatchOperationsAsync
getCharacterState setCharacterState
getCurrentChatId reloadCurrentChat renameChat openCharacterChat closeCurrentChat doNewChat getPastCharacterChats
deleteCharacterChat openGroupChat saveChat printMessages clearChat sendSystemMessage
setExtensionPrompt extensionPrompts
swipe.left swipe.right swipe.to swipe.show swipe.hide swipe.refresh swipe.isAllowed swipe.state
appendMediaToMessage ensureMessageMediaIsArray getMediaDisplay getMediaIndex scrollChatToBottom scrollOnMediaLoad
eventSource
""")
"""The names of Luker's page "Chat & State", and nothing else."""

SEED_EVENTS = _words("""
MESSAGE_SENT MESSAGE_RECEIVED MESSAGE_EDITED MESSAGE_UPDATED MESSAGE_DELETED MESSAGE_SWIPED MESSAGE_SWIPE_DELETED
CHAT_CHANGED CHAT_BRANCH_CREATED
""")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:]]


def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def test_the_table_names_what_the_seed_names() -> None:
    assert [row[0].strip("`") for row in rows("Every name of the seed") if row[0].strip("`") not in SEED] == []
    listed = [row[0].strip("`") for row in rows("Every name of the seed")]
    assert sorted(listed) == sorted(SEED)


@pytest.mark.parametrize("row", rows("Every name of the seed"), ids=lambda row: row[0].strip("`"))
def test_each_name_is_where_the_table_says(row: list[str]) -> None:
    seed, here = row[0].strip("`"), row[1].strip("`")
    if here == "front end":
        name = snake_case(seed)
        assert name in FRONT_END
        assert not hasattr(Context.__new__(Context), name)
        with pytest.raises(FrontEndBusiness, match=name):
            getattr(Context.__new__(Context), name)
        return
    kind: type
    if here == "create_context":
        return
    if here.startswith("swipe."):
        kind, name = Swipes, here.removeprefix("swipe.")
    elif here.startswith("FloorState."):
        kind, name = FloorState, here.removeprefix("FloorState.")
        assert seed == f"instance.{name}"
    else:
        kind, name = Context, here
        if seed != "buildObjectPatchOperationsAsync":
            assert name == snake_case(seed)
    if name == "event_source":
        return
    found = inspect.getattr_static(kind, name)
    assert found.__doc__ or found.__func__.__doc__, f"{here} says nothing about itself"


def test_the_events_of_the_seed_and_all_of_ours_are_in_the_table() -> None:
    listed = [name for row in rows("Events") for name in re.findall(r"[A-Z_]{4,}", row[0])]
    assert sorted(listed) == sorted(EventTypes.__members__)
    assert set(SEED_EVENTS) <= set(listed)
    for verb in ("on", "once", "off", "emit"):
        assert callable(getattr(EventSource, verb))


def test_what_the_page_names_beside_the_seed_is_there() -> None:
    beside = PAGE.read_text().split("Beside the seed: ")[1].split("\n\n")[0]
    for name in re.findall(r"`([a-z_.]+)", beside):
        owner = EventSource if name.startswith("event_source.") else Context
        assert hasattr(owner, name.removeprefix("event_source.")), name
