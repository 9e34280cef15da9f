"""Reference servers: what tellback is measured against, each a small file that runs on its own.

Every peer prints one line, ``ws://HOST:PORT/PATH`` or ``http://HOST:PORT/``, when it is ready, and ends on SIGTERM.
None is a straw man: each does its job in the way its library's own documentation shows, and the cheap way where there
is a choice.
"""
