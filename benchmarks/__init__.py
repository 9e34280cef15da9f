"""The benchmarks: tellback against what else could do its work, in the same run, on the same disk.

    .venv/bin/python -m benchmarks                 everything, writes benchmarks/RESULTS.md
    .venv/bin/python -m benchmarks T1 T2           some targets, prints only
    .venv/bin/python -m benchmarks peers           the peers' own figures, without tellback
    .venv/bin/python -m benchmarks --quick         two short repetitions, to see that it works

A file owns one noun: `generator` (what drives a server), `server` (a process under test), `disk`, `machine`, `chats`
(what is there before a measurement), `targets` (the floors), `samples` (what was measured), `results` (the page),
`scenarios/` (one kind of measurement each), `peers/` (the references). Machines are noisy, so every target is a ratio
inside one repetition, and the median of the repetitions is what counts.
"""
