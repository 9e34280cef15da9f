"""Repair desk: what a user asks of a damaged chat: what is wrong, what can be put right, and to do it.

Rules of this module (BEHAVIOUR X14):
- Check and repair are those of the command line, over the files of one chat and what the log tells of it.
- Nothing else touches the chat's files meanwhile; afterwards it is read anew, and every tab that has it open hears so.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from typing import Final

from tellback_protocol.errors import Refused
from tellback_protocol.ids import CharacterChat, GroupChat, parse_place
from tellback_protocol.repairs import ChatRepair, ChatRepairFrame, FoundDamage, PlannedRepair
from tellback_server.actor import Actor
from tellback_server.checkpoint import in_thread
from tellback_server.checks.findings import Finding
from tellback_server.checks.owner_inspection import OwnerInspection
from tellback_server.checks.scope import Scope
from tellback_server.hub import Hub
from tellback_server.repairs.repairer import Plan, Repairer
from tellback_server.store.files import FileStore
from tellback_server.tab import Tab

__all__ = ["RepairDesk"]

POLL_S: Final = 0.005


class RepairDesk:
    """See the module. Loop thread; files are touched in threads."""

    def __init__(self, hub: Hub, files: FileStore, *, offers: bool) -> None:
        """`offers`: chats are files here."""
        self._hub = hub
        self._files = files
        self._offers = offers

    async def answer(self, tab: Tab, request: ChatRepair) -> ChatRepairFrame:
        """The frame that answers. Raises Refused, OSError."""
        if not self._offers:
            raise Refused("unsupported", "Chats are in a store here, which tells of damage itself.", pointer="/chat")
        actor = await self._actor(tab.user, request.chat)
        if not request.apply:
            inspection = self._inspection(actor)
            plan = await self._hub.in_thread(lambda: self._planned(inspection)[1])
            return _told(request, actor.chat_id, plan, inspection)
        self._hub.admit()
        while actor.folding:  # noqa: ASYNC110  - It ends by itself, soon.
            await asyncio.sleep(POLL_S)
        # A reply that a crash left in a damaged chat cannot end before the repair.
        if actor.state != "ready" or (actor.generations and not actor.live_stream.damage):
            raise Refused("overloaded", "The chat is at work; ask again.", details={"after_ms": 500})
        turn = actor.turn
        actor.state, actor.folding = "busy", True
        kept: list[str] = []
        is_touched = False
        try:
            actor.generations.journal()
            await self._hub.log.flush()
            inspection = self._inspection(actor)
            is_touched = True
            # Whoever asked may leave; the files are not left alone half-way.
            plan, kept = await in_thread(self._hub.executor, lambda: self._carried_out(inspection))
            is_touched = bool(kept)
        finally:
            actor.folding = False
            if actor.state == "busy" and actor.turn == turn:
                if is_touched:
                    # The next request reads the files.
                    actor.repaired()
                    self._hub.end(actor)
                    self._hub.spawn(actor.hand_on())
                else:
                    actor.resume()
                    if actor.file is not None and actor.file.pending:
                        self._hub.shelf.became_dirty(actor)
        return _told(request, actor.chat_id, plan, inspection, kept=kept)

    async def _actor(self, user: str, chat: str) -> Actor:
        actor = await self._hub.settled_chat(user, chat)
        if actor is None or actor.stream is None or actor.state in ("missing", "ended"):
            raise Refused("not-found", "There is no such chat, or it cannot be read.", pointer="/chat")
        if actor.state == "gone":
            raise Refused("deleted", actor.stream.in_trash(), pointer="/chat", details={"chat_id": actor.chat_id})
        return actor

    def _inspection(self, actor: Actor) -> OwnerInspection:
        place = parse_place(actor.name)
        assert isinstance(place, CharacterChat | GroupChat), "a chat"
        root = self._files.user_root(actor.user)
        scope = Scope(os.path.dirname(self._files.server_root), {actor.user: root})
        return OwnerInspection(self._files.fs, scope, actor.user, place, actor.chat_id, self._hub.log)

    def _planned(self, inspection: OwnerInspection) -> tuple[Repairer, Plan]:
        repairer = Repairer(self._files.fs, self._hub.clock, inspection.scope, inspection)
        return repairer, repairer.plan(inspection.findings())

    def _carried_out(self, inspection: OwnerInspection) -> tuple[Plan, list[str]]:
        repairer, plan = self._planned(inspection)
        root = inspection.scope.users[inspection.user]
        return plan, [os.path.relpath(folder, root) for folder in repairer.carry_out(plan.choices)]


def _told(
    request: ChatRepair, chat_id: str, plan: Plan, inspection: OwnerInspection, *, kept: list[str] | None = None
) -> ChatRepairFrame:
    below = inspection.below

    def told(findings: Iterable[Finding]) -> list[FoundDamage]:
        return [
            FoundDamage(one.code, one.severity, below(one.path), one.message, one.remedy, one.line, one.count)
            for one in findings
        ]

    return ChatRepairFrame(
        chat_id, told(one for one in inspection.found if one.severity != "info"),
        [PlannedRepair(below(one.path), one.actions, one.quarantined) for one in plan.choices],
        told(one.finding for one in plan.left), done=bool(kept), kept=kept or [], id=request.id,
    )
