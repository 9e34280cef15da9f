"""The page: targets and what was measured, the servers' own figures, the machine and its disk, and what is missing."""

from benchmarks import generator, machine
from benchmarks.samples import Samples, median
from benchmarks.scenarios import Plan
from benchmarks.targets import TARGETS, Target


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _spread(values: list[float]) -> str:
    return f"{_number(min(values))} to {_number(max(values))}" if len(values) > 1 else "one run"


def verdict(target: Target, values: list[float]) -> str:
    """ "stretch", "floor" or "MISSED"."""
    worst = max(values) if target.lower_is_better else min(values)
    value = worst if target.by_worst else median(values)
    if target.stretch is not None and target.reached(value, target.stretch):
        return "stretch"
    return "floor" if target.reached(value, target.floor) else "**MISSED**"


def _target_rows(plan: Plan, samples: Samples) -> tuple[list[str], list[str]]:
    rows: list[str] = []
    missing: list[str] = []
    for target in TARGETS:
        values, problems = samples.values.get(target.key, []), sorted(samples.problems.get(target.key, ()))
        if not values:
            if plan.wants(target.id):
                missing.append(f"{target.key}: {'; '.join(problems) or 'see below'}")
            continue
        floor = f"{'<=' if target.lower_is_better else '>='} {_number(target.floor)}{target.unit}"
        stretch = "" if target.stretch is None else f"{_number(target.stretch)}{target.unit}"
        measured = f"{_number(max(values) if target.by_worst else median(values))}{target.unit}"
        note = verdict(target, values) + "".join(f" ({problem})" for problem in problems)
        if len(values) < plan.repetitions:
            note += f" ({len(values)} of {plan.repetitions} repetitions count)"
        rows.append(f"| {target.key} | {target.what} | {floor} | {stretch} | {measured} | {_spread(values)} | {note} |")
    return rows, missing


def _run_rows(samples: Samples) -> list[str]:
    rows = []
    for (server, work), runs in samples.runs.items():
        rates = [run.rate for run in runs]
        discarded = samples.discarded.get((server, work), 0)
        cells = [
            f"{median(rates):,.0f}",
            f"{min(rates):,.0f} to {max(rates):,.0f}",
            f"{median([run.cpu_us_per_op for run in runs]):.1f}",
            f"{median([run.p50_us for run in runs]) / 1000:.2f}",
            f"{median([run.p99_us for run in runs]) / 1000:.2f}",
            f"{max(run.generator_busy for run in runs):.0%}"
            + ("" if all(run.counts for run in runs) else " (does not count)"),
            f"{max(run.foreign_cpu for run in runs):.0%}",
            f"{len(runs)}" + (f" and {discarded} discarded" if discarded else ""),
        ]
        rows.append(f"| {server} | {work} | " + " | ".join(cells) + " |")
    return rows


def page(plan: Plan, samples: Samples) -> str:
    targets, missing = _target_rows(plan, samples)
    lines = [
        "# Results",
        "",
        "Written by `python -m benchmarks`. Targets are in `targets.py`, how they are measured in `scenarios/`.",
        "",
        f"- {machine.today()}, commit {machine.commit()}",
        f"- {machine.describe()}; server on core {machine.SERVER_CORE}, generator on core {machine.GENERATOR_CORE}",
        f"- {plan.repetitions} interleaved repetitions, windows of {plan.seconds:g} s after {plan.warmup_s:g} s",
        f"- generator: {'C, epoll' if generator.is_compiled() else 'Python, uvloop (no C compiler here)'}",
    ]
    for kind, syncs in samples.syncs.items():
        lines.append(
            f"- the disk's own fdatasync, 200 B, {kind} file: p50 {median([s.p50_us for s in syncs]):.0f} us, "
            f"p99 {median([s.p99_us for s in syncs]):.0f} us, {median([s.rate for s in syncs]):,.0f} a second"
        )
    if targets:
        lines += [
            "",
            "## Targets",
            "",
            "| target | what | floor | stretch | measured | spread | verdict |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += targets
    if samples.runs:
        lines += ["", "## Servers", ""]
        lines += [
            "| server | work | ops/s | spread | CPU us/op | ack p50 ms | p99 ms | generator busy | foreign CPU | runs |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|---|---|", *_run_rows(samples), ""]
        lines += [
            "Busy and foreign are the highest of the runs. Foreign is what neither server nor generator used, in cores:"
        ]
        lines += [
            "other programs' noise, and the disk's own work. A run whose generator was over 85 % busy does not count."
        ]
        lines += ["Discarded: done again (twice at most) because others used over a quarter of a core during the work."]
    if samples.figures:
        lines += ["", "## Other figures", "", "| figure | median | spread |", "|---|---|---|"]
        lines += [
            f"| {name} | {_number(median(values))} | {_spread(values)} |" for name, values in samples.figures.items()
        ]
    if any("full save" in name for name in samples.figures):
        lines += [
            "",
            "The full save is a bare Node server without SillyTavern's middlewares, so it is faster than the real",
        ]
        lines += [
            "one (2.1 / 5.8 / 45 ms at 100 / 1,000 / 10,000 messages in PERFORMANCE.md, which T8's floors were set by)."
        ]
    if missing or samples.failures:
        lines += ["", "## Not measured", ""]
        lines += [f"- {line}" for line in [*missing, *samples.failures]]
    return "\n".join(lines) + "\n"
