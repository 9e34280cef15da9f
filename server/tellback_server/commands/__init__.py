"""The commands of `tellback`, a file each; `__main__` puts them together."""
