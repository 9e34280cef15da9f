"""Repairs: how what `checks` found is put right, each change behind a byte-exact copy. See `repairer`."""
