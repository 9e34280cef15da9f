"""Stray texts: another program took a generation away while its text came.

Rules of this module (BEHAVIOUR T23):
- What there is of the text goes into the chat, by a commit of the server's own.
- Where nothing can be committed (the chat's file is damaged, the document of the generations is no JSON) the log keeps
  the text, and it is found again when the file was repaired.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from tellback_protocol.decide import decide_strays
from tellback_protocol.errors import Refused
from tellback_protocol.generations import NAMESPACE
from tellback_server.log import LogError

if TYPE_CHECKING:
    from tellback_server.actor import Actor
    from tellback_server.generation_desk import GenerationDesk

__all__ = ["keep_strays"]

log = structlog.get_logger()


def keep_strays(actor: Actor, desk: GenerationDesk) -> None:
    """Carry them into the chat; what fails now is tried again at the next beat."""
    stream = actor.stream
    assert stream is not None, "a live chat"
    told = {"chat": actor.name, "generations": sorted(stream.stray)}
    document = stream.states.get(NAMESPACE)
    if stream.damage or (document is not None and document.corrupt):
        log.error("generations-stray", **told)
        stream.stray = {}
        return
    try:
        desk.admit()
        actor.writes.commit_own(decide_strays(stream, desk.fresh(), desk.limits))
    except (Refused, LogError) as problem:
        log.error("generations-stray", error=str(problem), **told)
        return
    stream.stray = {}
    log.warning("generations-kept", **told)
