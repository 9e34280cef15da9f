"""Checks: what is wrong with the files of a data folder. Reads only; see `inspection`."""
