"""A character or preset as the user holds it: state documents, and who changes them."""

from __future__ import annotations

from tellback_protocol.ids import Version

from .handle import Handle


class Owner(Handle):
    """An open character or preset. Made by `Client.character` and `Client.preset`."""

    @property
    def owner_id(self) -> str:
        """The permanent id."""
        return self.subscription.chat_id or ""

    @property
    def versions(self) -> dict[str, Version]:
        """The confirmed version of each state document that there is."""
        return dict(self._confirmed().versions)
