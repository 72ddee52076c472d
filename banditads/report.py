"""Evaluations for people: a table for the terminal, curves for the eye, JSON for programs.

`run` does the whole of `banditads replay` and of `benchmarks/replay.py`: logs in, reports out. Plots need
`pip install banditads[plots]`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import policies
from .cluster import Unit, follow_log, spread
from .directory import read_config
from .errors import Misconfigured
from .evaluation import EVERYTHING, LOGGED, Point, Report, Result, joined, notes, results, segments
from .logs import journal
from .ope import Estimate
from .selecting import NONE, Selection

UNSURE = "not enough to say"
ESTIMATORS = ("snips", "dr")  # that a table shows, unless it is told


def run(
    sources: Sequence[str],
    specs: Sequence[str] = (),
    *,
    selection: Selection = EVERYTHING,
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
    reward_min: float | None = None,
    reward_max: float | None = None,
    ray: str = "",
    console: Console | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Report]:
    """Evaluate policies, all there are if none is named, on the first `limit` rounds of each log.

    Where no range of rewards is given, it is that of the data directory, or 0 to 1.

    Raises `Misconfigured` for a feature to group by that no round has. `ray` is the address of a cluster that
    does it; see `cluster`. `console` gets a progress bar, which is gone in the end; none is drawn where it is
    not a terminal. `progress` hears the same.
    """
    specs = list(specs) or policies.names()
    for spec in specs:
        policies.from_spec(spec)  # what is no policy is refused before anything takes long
    whole = [
        Unit(source, specs, selection, seed, limit, *_range(source, reward_min, reward_max))
        for source in sources
        for seed in seeds
    ]
    if ray:
        units = [msgspec.structs.replace(unit, specs=[spec]) for unit in whole for spec in specs]
        with _bar(console, f"on Ray at {ray}", len(units)) as advance:
            done = iter(spread(units, ray, _both(advance, progress)))
        followed = [joined(list(islice(done, len(specs)))) for _ in whole]
    else:
        followed = []
        for unit in whole:
            with _bar(console, unit.source, limit) as advance:
                followed.append(follow_log(unit, _both(advance, progress)))
    for unit, each in zip(whole, followed, strict=True):
        if each.labels == [NONE]:
            raise Misconfigured(f"no round of {unit.source} has {selection.by!r} to be told apart by")
    return [
        Report(
            str(unit.source),
            unit.seed,
            results(each),
            selection,
            segments(each, selection.by) if selection.by else {},
            each.waiting,
            notes(each),
        )
        for unit, each in zip(whole, followed, strict=True)
    ]


def _both(*heard: Callable[[int], object] | None) -> Callable[[int], object]:
    def hear(done: int) -> None:
        for each in heard:
            if each:
                each(done)

    return hear


def table(report: Report, estimators: Sequence[str] = ESTIMATORS, *, markdown: bool = False) -> Table:
    """One row per policy. Estimates are per round, with 95 % intervals; those not worth showing are not.

    The interval that may be looked at while the log grows is always worth showing: it is wide instead.
    """
    found = Table(
        title=None if markdown else report.title,
        box=box.MARKDOWN if markdown else box.SIMPLE_HEAVY,
        title_justify="left",
        title_style="bold",
        pad_edge=markdown,
        collapse_padding=not markdown,  # nine columns in 80
    )
    between = " " if markdown else "\n"
    found.add_column("policy", no_wrap=markdown, overflow="fold")
    names = [each.upper().replace("_", between) for each in estimators]
    headings = f"rejection{between}replay", "accepted", *names, "anytime", "ESS", f"largest{between}weight"
    for heading in headings:
        found.add_column(heading, justify="right", no_wrap=markdown)
    for result in report.results:
        found.add_row(
            result.policy,
            _cell(result.replay, result.replay_enough, between),
            f"{result.accepted:,}{between}({result.match_rate:.1%})",
            *(_cell(result.estimates[each], result.weights_enough, between) for each in estimators),
            _between(result.anytime, between),
            f"{result.effective_sample_size:,.0f}",
            _short(result.largest_weight),
        )
    return found


def show(
    reports: Sequence[Report],
    console: Console,
    *,
    estimators: Sequence[str] = ESTIMATORS,
    markdown: bool = False,
) -> None:
    """Print the tables, one below the other; as Markdown with headings, to be pasted."""
    for report in (part for each in reports for part in each.parts()):
        if markdown:
            console.print(f"### {report.title}", highlight=False, markup=False)
        console.print(table(report, estimators, markdown=markdown))
        for note in report.notes:
            console.print(note, highlight=False, markup=False)
        said: dict[str, list[str]] = {}
        for result in report.results:
            for note in result.notes:
                said.setdefault(note, []).append(result.policy)
        for note, about in said.items():
            console.print(f"{', '.join(about)}: {note}", highlight=False, markup=False)
        console.print()


def plotting() -> Any:
    """What draws. Raises `Misconfigured` if it is not installed."""
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise Misconfigured("plots need matplotlib: pip install 'banditads[plots]'") from error


def plot(reports: Sequence[Report], path: str | Path) -> None:
    """Draw how the estimates came about, a row per log, and save it: PNG, SVG or PDF by the path's end."""
    figure = plotting().Figure(figsize=(12, 0.6 + 4.2 * len(reports)), layout="constrained")
    grid = figure.subplots(len(reports), 2, squeeze=False)
    for report, (left, right) in zip(reports, grid, strict=True):
        replayed = [(each, each.replay_curve, each.replay_enough) for each in report.results]
        weighted = [(each, each.snips_curve, each.weights_enough) for each in report.results]
        _panel(left, f"{report.title}\nRejection replay", replayed)
        _panel(right, "Self-normalised IPS", weighted)
    figure.savefig(path, dpi=150)


def _panel(axes: Any, title: str, curves: Sequence[tuple[Result, tuple[Point, ...], bool]]) -> None:
    """One line per policy with its interval as a shade; where there is too little to say, only its name."""
    bounds = []
    for number, (result, curve, enough) in enumerate(curves):
        colour = "black" if result.policy == LOGGED else f"C{number - 1}"
        points = [(p.rounds, p.estimate) for p in curve if p.estimate.low is not None]
        if not enough or not points:
            axes.plot([], [], color=colour, linestyle=":", label=f"{result.policy}: {UNSURE}")
            continue
        x = [rounds for rounds, _ in points]
        low, high = ([getattr(each, side) for _, each in points] for side in ("low", "high"))
        axes.plot(
            x,
            [each.value for _, each in points],
            color=colour,
            linestyle="--" if result.policy == LOGGED else "-",
            zorder=3 if result.policy == LOGGED else 2,
            label=f"{result.policy}: {points[-1][1].value:.3g}",
        )
        axes.fill_between(x, low, high, color=colour, alpha=0.08, linewidth=0)
        bounds += [low[-1], high[-1]]
    if bounds:
        room = (max(bounds) - min(bounds)) / 2
        axes.set_ylim(
            max(0, min(bounds) - room) if min(bounds) >= 0 else min(bounds) - room, max(bounds) + room
        )
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("rounds of the log")
    axes.set_ylabel("average reward so far")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=2)


def _cell(estimate: Estimate, enough: bool, between: str) -> str:
    if estimate.value is None or not enough:
        return UNSURE.replace(" to", f"{between}to")
    if estimate.high is None:
        return f"{estimate.value:.3g}{between}± ?"
    return f"{estimate.value:.3g}{between}± {estimate.high - estimate.value:.2g}"


def _between(estimate: Estimate, between: str) -> str:
    if estimate.low is None or estimate.high is None:
        return "?"
    return f"{estimate.low:.2g}{between}.. {estimate.high:.2g}"


def _short(number: float) -> str:
    """Three digits, or all those before the point."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def _range(source: str, low: float | None, high: float | None) -> tuple[float, float]:
    there = (read_config(Path(source)) or {}) if journal.recognises(Path(source)) else {}
    least, most = there.get("reward_min", 0.0), there.get("reward_max", 1.0)
    return least if low is None else low, most if high is None else high


@contextmanager
def _bar(console: Console | None, name: str, total: int | None) -> Iterator[Callable[[int], object] | None]:
    if console is None:
        yield None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, completed=done)
