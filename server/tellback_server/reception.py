"""Who is there: hello, users, sessions, heartbeats.

Rules of this module:
- The user of a connection is decided once, by hello; a later token must name the same user (BEHAVIOUR C9).
- A second live hello with a session takes it over: the first connection is closed with 4501 (C6).
- A peer that says nothing for a heartbeat gets a ping; one that stays silent is cut off (C10).
- Tokens are handed to the authenticator and to nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from tellback_protocol.errors import Refused
from tellback_protocol.frames import Auth, Hello, ModelServer
from tellback_server.auth import Authenticator
from tellback_server.tab import Tab
from tellback_server.websocket import text_frame

log = structlog.get_logger()


class Reception:
    """The connections of this process, by user and session."""

    def __init__(
        self, authenticator: Authenticator, server_name: str, heartbeat_ms: int,
        upstreams: Sequence[ModelServer] = (),
    ) -> None:
        self._authenticator = authenticator
        self._server_name = server_name
        self._heartbeat_ms = heartbeat_ms
        self._upstreams = upstreams
        self._sessions: dict[tuple[str, str], Tab] = {}
        self.tabs: set[Tab] = set()

    def arrived(self, tab: Tab) -> None:
        """A connection was made."""
        self.tabs.add(tab)

    def left(self, tab: Tab) -> None:
        """A connection is gone."""
        self.tabs.discard(tab)
        key = (tab.user, tab.session_id)
        if self._sessions.get(key) is tab:
            del self._sessions[key]

    def hello(self, tab: Tab, frame: Hello) -> None:
        """Accept the tab or close it."""
        try:
            identity = self._authenticator.authenticate(frame.token)
        except Refused as refusal:
            log.warning("tab-refused", code=refusal.code, address=tab.peer.address)
            tab.refuse_user(refusal)
            return
        key = (identity.user, frame.session)
        older = self._sessions.get(key)
        if older is not None:
            older.taken_over()
        self._sessions[key] = tab
        tab.client = frame.client if isinstance(frame.client, str) else ""
        tab.accept(identity, self._server_name, self._heartbeat_ms, self._upstreams)
        log.info("tab-accepted", user=identity.user, session=frame.session[:8], address=tab.peer.address)

    def authenticate_again(self, tab: Tab, frame: Auth) -> None:
        """A fresh token, for the same user."""
        try:
            identity = self._authenticator.authenticate(frame.token)
            if identity.user != tab.user:
                raise Refused("forbidden", "A connection stays with the user of its hello.", pointer="/token")
        except Refused as refusal:
            tab.refuse_user(refusal, frame.id)
            return
        tab.identity = identity
        tab.outbox.urgent(text_frame(
            tab.session.welcome_again(frame, self._server_name, self._heartbeat_ms, self._upstreams)
        ))
        tab.outbox.flush()

    def sweep(self) -> None:
        """Once a heartbeat: silent peers, tokens that expired or were revoked."""
        for tab in list(self.tabs):
            if tab.identity is not None:
                try:
                    self._authenticator.check(tab.identity)
                except Refused as refusal:
                    tab.refuse_user(refusal)
                    continue
            tab.check_alive()

    def goaway(self, reason: str) -> None:
        """Stop reading everybody."""
        for tab in list(self.tabs):
            tab.goaway(reason)
