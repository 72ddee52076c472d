"""The live view of a server that learns: clicks per visit between picking at random and the best possible.

`show` takes visits one by one, from wherever they come, and draws them in the terminal while they happen, or
prints a line every `WINDOW` visits where there is none. It returns the `Summary` that `plot` makes a picture
of. The simulated world knows the two rates to compare with; a real site does not.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .report import plotting
from .simulation import Floats, Visit

WINDOW = 500  # visits; "lately" means so many
FRAME = 0.1  # seconds between two pictures in the terminal
NEXT = "Next: put your own ads in with `banditads serve --catalog ads.jsonl`, and see the README."


class Summary:
    """What happened so far, visit by visit. All arrays have the shape (visits,)."""

    def __init__(self, total: int) -> None:
        self.visits = 0
        self.seconds = 0.0  # from the first visit to the last
        self.shown: Counter[str] = Counter()  # ad id -> visits
        self.clicks: Counter[str] = Counter()  # ad id -> clicks
        self._seen = np.zeros((total, 4))

    def add(self, visit: Visit) -> None:
        """One more visit, of at most `total`."""
        self._seen[self.visits] = visit[1:]
        self.visits += 1
        self.shown[visit.ad_id] += 1
        self.clicks[visit.ad_id] += visit.clicked

    @property
    def clicked(self) -> Floats:
        """1 where the visitor clicked, else 0."""
        return self._seen[: self.visits, 0]

    @property
    def expected(self) -> Floats:
        """Probability of a click on the ad that was shown."""
        return self._seen[: self.visits, 1]

    @property
    def best(self) -> Floats:
        """Probability of a click on the best ad."""
        return self._seen[: self.visits, 2]

    @property
    def uniform(self) -> Floats:
        """Probability of a click on an ad picked at random."""
        return self._seen[: self.visits, 3]

    def lift(self, last: int = 0) -> float:
        """Clicks, as a multiple of what random picks earn; over the `last` visits, or all."""
        return float(self.clicked[-last:].sum() / self.uniform[-last:].sum())

    def share(self, last: int = 0) -> float:
        """Clicks, as a share of what the best picks earn; over the `last` visits, or all."""
        return float(self.clicked[-last:].sum() / self.best[-last:].sum())

    def __str__(self) -> str:
        """One line for a log file."""
        return (
            f"{self.visits:,} visits, {int(self.clicked.sum()):,} clicks ({self.clicked.mean():.1%}; "
            f"last {WINDOW}: {self.clicked[-WINDOW:].mean():.1%}), {self.lift():.2f} x random "
            f"({self.uniform.mean():.1%}), {self.share():.0%} of the best possible ({self.best.mean():.1%}), "
            f"{self.visits / max(self.seconds, 1e-9):,.0f} visits/s"
        )


def show(visits: Iterator[Visit], total: int, console: Console, hint: str = NEXT) -> Summary:
    """Draw (at most `total`) visits while they happen. `hint` is the line that says how to go on."""
    summary = Summary(total)
    started = time.monotonic()
    if not console.is_terminal:
        for visit in visits:
            summary.add(visit)
            summary.seconds = time.monotonic() - started
            if summary.visits % WINDOW == 0 or summary.visits == total:
                console.out(str(summary), highlight=False)
        console.out(hint, highlight=False)
        return summary
    drawn = 0.0
    with Live(console=console, auto_refresh=False) as live:
        for visit in visits:
            summary.add(visit)
            summary.seconds = time.monotonic() - started
            if summary.seconds - drawn > FRAME or summary.visits == total:
                live.update(_view(summary, total, hint, console.width), refresh=True)
                drawn = summary.seconds
    return summary


def plot(summary: Summary, path: str | Path) -> None:
    """The learning curve as a PNG that reads on light and dark pages alike. Needs the extra `plots`."""
    ink = "#7d8590"  # 4 : 1 against white and against black
    size = min(WINDOW, max(1, summary.visits // 4))
    x = np.arange(size, summary.visits + 1)
    figure = plotting().Figure(figsize=(8, 4), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    best, random = float(summary.best.mean()), float(summary.uniform.mean())
    axes.axhline(best, color=ink, lw=1, ls=(0, (4, 3)))
    axes.axhline(random, color=ink, lw=1, ls=(0, (4, 3)))
    axes.plot(x, _moving(summary.clicked, size), color="#e8833a", lw=1, alpha=0.6, label="counted")
    axes.plot(x, _moving(summary.expected, size), color="#e8833a", lw=2.4, label="to be expected")
    for y, label in ((best, "best ad for every visit"), (random, "ads at random")):
        axes.text(summary.visits, y, f"{label}  {y:.1%}", color=ink, ha="right", va="bottom", fontsize=10)
    title = f"{summary.lift():.1f} times the clicks of random ads in {summary.visits:,} visits"
    axes.set_title(title, color="#e8833a", loc="left", fontsize=12, fontweight="bold")
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.88), frameon=False, labelcolor=ink)
    axes.set_xlabel("visits", color=ink)
    axes.set_ylabel(f"clicks per visit, over {size} visits", color=ink)
    axes.set_xlim(0, summary.visits)
    axes.set_ylim(0, best * 1.15)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    axes.tick_params(colors=ink, length=0)
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color=ink, alpha=0.2)
    figure.savefig(path, transparent=True)


def _view(summary: Summary, total: int, hint: str, width: int) -> Panel:
    """One picture for the terminal."""
    rates = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("clicks per visit", "all so far", f"last {WINDOW}"):
        rates.add_column(heading, justify="left" if heading.startswith("clicks") else "right")
    for label, values, style in (
        ("best ad for every visit", summary.best, "dim"),
        ("this server", summary.clicked, "bold green"),
        ("ads at random", summary.uniform, "dim"),
    ):
        rates.add_row(label, f"{values.mean():.1%}", f"{values[-WINDOW:].mean():.1%}", style=style)
    rates.add_row("times random", f"{summary.lift():.2f}", f"{summary.lift(WINDOW):.2f}", style="green")
    rates.add_row("share of the best", f"{summary.share():.0%}", f"{summary.share(WINDOW):.0%}")

    top = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("most shown", "visits", "clicks"):
        top.add_column(heading, justify="left" if heading == "most shown" else "right")
    for ad_id, count in summary.shown.most_common(5):
        top.add_row(Text(ad_id), f"{count:,}", f"{summary.clicks[ad_id] / count:.1%}")

    tables = Table.grid(padding=(0, 2))
    tables.add_row(rates, top)
    progress = Table.grid(padding=(0, 2))
    speed = summary.visits / max(summary.seconds, 1e-9)
    progress.add_row(
        ProgressBar(total=total, completed=summary.visits, width=30),
        f"{summary.visits:,} of {total:,} visits, {speed:,.0f} a second",
    )
    wide = min(width, 100) - 8
    buckets = np.full(wide, np.nan)  # expected clicks per visit, left to right over all visits to come
    edges = np.linspace(0, total, wide + 1).astype(int)
    for i, (start, end) in enumerate(pairwise(edges)):
        if start < min(end, summary.visits):
            buckets[i] = summary.expected[start:end].mean()
    curve = chart(buckets, float(summary.uniform.mean()), float(summary.best.mean()))
    key = Text("clicks to expect of the ads shown · top: of the best ads · dots: at random", style="dim")
    body = Group(tables, Text(), Text("\n".join(curve), style="green"), key, Text(), progress, Text(hint))
    return Panel(body, title="banditads learns", width=min(width, 100), padding=(1, 2))


def chart(values: NDArray[np.float64], line: float, top: float, rows: int = 6) -> list[str]:
    """Bars from 0 to `top` in eighths of a character, with dots at `line` where there is no bar; NaN is none.

    >>> print(*chart(np.array([0, 2, 4, 8, 16]) / 16, line=0.25, top=1, rows=2), sep="\\n")
        █
    ·▂▄██
    """
    eighths = np.nan_to_num(np.minimum(values / top, 1) * rows * 8).round().astype(int)  # (n_bars,)
    at = int(line / top * rows)
    drawn = []
    for row in reversed(range(rows)):
        empty = "·" if row == at else " "
        cells = np.clip(eighths - 8 * row, 0, 8)
        drawn.append("".join(" ▁▂▃▄▅▆▇█"[cell] if cell else empty for cell in cells))
    return drawn


def _moving(values: Floats, size: int) -> Floats:
    """Mean of each `size` neighbours, shape (n - size + 1,)."""
    sums = np.concatenate(([0.0], values.cumsum()))
    return (sums[size:] - sums[:-size]) / size
