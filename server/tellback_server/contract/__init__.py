"""The contract of stores, for whoever writes one: `class TestMyStore(StoreContract)`. Needs pytest."""

from tellback_server.contract.saved import Saved, same
from tellback_server.contract.suite import StoreContract

__all__ = ["Saved", "StoreContract", "same"]
