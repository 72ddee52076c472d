"""Who earns most while learning: `python benchmarks/learning.py --plot FOLDER --results FILE`.

Every contestant (`learners.py`) plays the same games (`games.py`) with the same dice. A ratio is what one
earned of what the best single policy of that game earned, chosen in hindsight by its mean over the seeds,
among all that are not made of several; within a seed, so that an easier draw counts for nobody. Means are
over games, intervals 95 % (Student's t over the seeds), "worst" is the game with the lowest mean ratio, and
"capped" the mean that counts no game as more than 1, so that being far ahead in one makes up for no other.
CPU is that of one choice and its learning in this process, the mean over the games.

Something here may have been tuned on the sets in `datasets.TUNING`; those in `datasets.SEEN` were looked at,
and so was traffic; those in `datasets.HELD_OUT` were not before everything was decided.

* *Feedback in flight*: the outcome of a choice is told so many visits later.
* *Silence*: a click comes after a while (exponentially distributed), its absence is known at the end of a
  window only, and clicks after it are lost. "wait" and "immediate" are the server's `--silence`; "undone" is
  as immediate, but the click takes back what was learned at the choice (Ktena et al. 2019, arXiv:1907.06558).

Needs `pip install -e '.[learning]'`, and for contextualbandits, which has no wheels, a compiler and `pip
install contextualbandits`. Who is not installed does not play. Most sets are fetched once, by `apt-get` and
`pip`: see `datasets.py`. `--results` keeps what was played, so that a run can go on.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from heapq import heappop, heappush
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import click
import datasets
import learners
import numpy as np
from games import Game, Right, Traffic
from learners import CONTESTANTS, DEFAULT, Contestant
from personalisation import interval
from rich import box
from rich.console import Console
from rich.table import Table

from banditads import report
from banditads.sampling import uniform

POINTS = 50  # of a curve
Told = tuple[float, float]  # visits from now, reward
MakeGame = Callable[[int, int], Game]  # from a seed and a number of visits


def later(k: int, clicked: bool, dice: float) -> Told:
    """Everything is known after `k` more visits."""
    return k, float(clicked)


def silence(delay: float, window: float, clicked: bool, dice: float) -> Told:
    """A click comes after `delay` visits on average and counts within the window."""
    after = -delay * log(1 - dice)
    return (after, 1.0) if clicked and after < window else (window, 0.0)


class Regime(NamedTuple):
    """What is played under which feedback, and by whom."""

    family: str
    title: str
    games: dict[str, MakeGame]
    told: Callable[[bool, float], Told]  # (whether clicked, dice)
    contestants: dict[str, Contestant]
    n: int


class Run(NamedTuple):
    """One contestant in one game."""

    curve: list[float]  # earned until each of `POINTS`
    n: int
    cpu: float  # seconds

    @property
    def mean(self) -> float:
        """Earned a visit."""
        return self.curve[-1] / self.n


def play(contestant: Contestant, game: Game, seed: int, told: Callable[[bool, float], Told]) -> Run:
    """Visitors come, are shown an ad, and click or do not; outcomes are told when they are due."""
    learner = contestant.make(game, seed)
    earned, due, cpu = np.zeros(game.n), [], 0.0
    for visit in game.visits():
        started = time.process_time()
        while due and due[0][0] < visit.number:
            _, _, ticket, reward = heappop(due)
            learner.learn(ticket, reward)
        place, ticket = learner.choose(visit)
        cpu += time.process_time() - started
        earned[visit.number] = visit.chances[place]
        clicked = bool(uniform(f"click {visit.number}", f"seed {seed}") < visit.chances[place])
        after, reward = told(clicked, uniform(f"delay {visit.number}", f"seed {seed}"))
        heappush(due, (visit.number + after, visit.number, ticket, reward))
    ends = np.linspace(game.n / POINTS, game.n, POINTS).astype(int)
    return Run(earned.cumsum()[ends - 1].tolist(), game.n, cpu)


@cache
def table_of(name: str) -> datasets.Table:
    """A data set, read once."""
    return datasets.load(name)


def sets(names: Iterable[str], change: str = "") -> dict[str, MakeGame]:
    """Classification sets as games."""
    return {name: lambda seed, n, name=name: Right(table_of(name), seed, n, change=change) for name in names}


def traffic(**options: Any) -> MakeGame:
    """Ads."""
    return lambda seed, n: Traffic(seed, n, **options)


def regimes(n: int, quick: bool) -> list[Regime]:
    """All that is played, with `n` visits a set and two and a half times as many of ads."""
    few = {label: CONTESTANTS[label] for label in learners.FEW}
    found = [
        Regime("immediate", "immediate feedback", sets(datasets.SETS), partial(later, 0), CONTESTANTS, n)
    ]
    some = ("imagesegments", "letter", "satellite")
    steady = few | {"River LinUCBDisjoint": CONTESTANTS["River LinUCBDisjoint"]}
    for k in (10, 100, 500):
        found.append(Regime("in flight", f"{k} in flight", sets(some), partial(later, k), steady, n))
    for change in ("abrupt", "slow"):
        found.append(Regime("drift", f"{change} change", sets(some, change), partial(later, 0), steady, n))
    worlds = {
        "10 ads, .5 %": traffic(ads=10, rate=0.005),
        "10 ads, 5 %": traffic(ads=10, rate=0.05),
        "100 ads, 1 %": traffic(ads=100, rate=0.01),
        "100 ads, 2 %, arriving": traffic(ads=100, rate=0.02, arriving=True),
        "100 ads, 2 %, abrupt": traffic(ads=100, rate=0.02, abrupt=True),
    }
    found.append(Regime("traffic", "traffic", worlds, partial(later, 0), few, 5 * n // 2))
    many = {label: few[label] for label in few if label not in learners.SLOW}
    crowd = {"1,000 ads, 5 %": traffic(ads=1000, rate=0.05)}
    found.append(Regime("traffic", "1,000 ads", crowd, partial(later, 0), many, n))
    audience = {f"20 ads, {rate} %": traffic(ads=20, rate=rate / 100) for rate in (1, 5)}
    audience |= sets(["imagesegments"])  # most of what is shown earns something
    for delay, window in ((n / 80, n / 20), (n / 40, n / 2), (n / 4, n / 2)):
        title = f"clicks after {delay:.0f} visits, window {window:,.0f}"
        told = partial(silence, delay, window)
        found.append(Regime("silence", title, audience, told, learners.SILENCE, 5 * n // 2))
    if not quick:
        return found
    # The sets are always there.
    kept = {"phishing", "imagesegments", "10 ads, 5 %", "100 ads, 2 %, arriving", "20 ads, 5 %"}
    those = ({name: game for name, game in each.games.items() if name in kept} for each in found)
    return [each._replace(games=games) for each, games in zip(found, those, strict=True) if games]


Results = dict[tuple[str, str, str], dict[int, Run]]  # (regime's title, game, contestant) -> by seed


def compete(regime: Regime, labels: Sequence[str], seeds: int, results: Results, keep: Callable[..., None]):
    """Every contestant in every game, as far as it was not played yet."""
    for seed in range(seeds):
        for game, make in regime.games.items():
            made = None
            for label in labels:
                runs = results.setdefault((regime.title, game, label), {})
                if seed not in runs:
                    made = made or make(seed, regime.n)
                    runs[seed] = play(regime.contestants[label], made, seed, regime.told)
                    keep(regime.title, game, label, seed, runs[seed])
                    print(
                        f"{regime.title}, {game}, seed {seed}: {label} {runs[seed].mean:.4f}", file=sys.stderr
                    )


class Standing(NamedTuple):
    """How one contestant did in a regime."""

    earned: tuple[float, float]  # a visit, mean over the games, and half of the interval
    ratio: tuple[float, float]  # to the best single policy of each game
    worst: tuple[float, str]  # lowest ratio of a game, and which
    cpu: float  # us a choice with its learning
    ratios: dict[str, float]  # by game

    @property
    def capped(self) -> float:
        """The mean ratio, no game counted as more than 1."""
        return float(np.minimum([*self.ratios.values()], 1.0).mean())


def standings(regime: Regime, results: Results, seeds: int, games: Sequence[str]) -> dict[str, Standing]:
    """Of everybody who played all of these games, the best first."""
    means: dict[str, dict[str, np.ndarray]] = {}  # label -> game -> (n_seeds,)
    cpu: dict[str, list[float]] = {}
    for label in regime.contestants:
        each = {game: results.get((regime.title, game, label), {}) for game in games}
        if all(len(runs) >= seeds for runs in each.values()):
            means[label] = {
                game: np.array([runs[s].mean for s in range(seeds)]) for game, runs in each.items()
            }
            cpu[label] = [runs[s].cpu / runs[s].n * 1e6 for runs in each.values() for s in range(seeds)]
    single = [label for label in means if regime.contestants[label].single] or [*means]
    best = {game: means[max(single, key=lambda label: means[label][game].mean())][game] for game in games}
    found = {}
    for label, by_game in means.items():
        ratios = {game: by_game[game] / best[game] for game in games}
        lowest = min(games, key=lambda game: ratios[game].mean())
        found[label] = Standing(
            interval(np.mean([*by_game.values()], axis=0)),
            interval(np.mean([*ratios.values()], axis=0)),
            (float(ratios[lowest].mean()), lowest),
            float(np.mean(cpu[label])),
            {game: float(each.mean()) for game, each in ratios.items()},
        )
    return dict(sorted(found.items(), key=lambda item: -item[1].ratio[0]))


def bold(label: str) -> str:
    """Ours are bold, the default says so."""
    name = f"**{label}**" if label in learners.OURS else label
    return f"{name} (default)" if label == DEFAULT else name


def pair(values: tuple[float, float], digits: int = 3) -> str:
    """A mean and half of its interval."""
    return " ± ".join(f"{each:.{digits}f}" for each in values)


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table with a first column of words."""
    found = Table(box=box.MARKDOWN)
    found.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        found.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        found.add_row(*row)
    return found


def by_contestant(found: dict[str, Standing], groups: dict[str, dict[str, Standing]]) -> Table:
    """Who did how well over all games and over groups of them."""
    headings = ["", "earned a visit", "of the best single", "capped", "worst"]
    rows = []
    for label, each in found.items():
        row = [bold(label), pair(each.earned), pair(each.ratio), f"{each.capped:.3f}"]
        row.append(f"{each.worst[0]:.2f} ({each.worst[1]})")
        for group in groups.values():
            of = group[label]
            row.append(f"{of.ratio[0]:.3f}, {of.capped:.3f}, {of.worst[0]:.2f}")
        rows.append([*row, f"{each.cpu:,.0f}"])
    return markdown([*headings, *(f"{name}: mean, capped, worst" for name in groups), "CPU us"], rows)


def by_game(regime: Regime, found: dict[str, Standing], results: Results, seeds: int) -> Table:
    """The best single policy of each game, and beside it the default and the best of ours."""
    ours = [label for label in found if label in learners.OURS]
    shown = [*dict.fromkeys([DEFAULT, *ours])][:5] if DEFAULT in found else ours[:5]
    rows = []
    singles = [label for label in found if regime.contestants[label].single] or [*found]
    for game in regime.games:
        best = max(singles, key=lambda label: found[label].ratios[game])
        runs = results[regime.title, game, best]
        earned = interval(np.array([runs[seed].mean for seed in range(seeds)]))
        beside = [f"{found[label].ratios[game]:.2f}" for label in shown]
        rows.append([game, f"{runs[0].n:,}", best, pair(earned), *beside])
    return markdown(["", "visits", "best single", "earned a visit", *map(bold, shown)], rows)


def by_silence(regime: Regime, results: Results, seeds: int) -> Table:
    """What every policy earned when it learned silence at once, and when it waited, world by world."""
    headings = ["", "", *learners.WAYS, f"{learners.WAYS[1]}, less {learners.WAYS[0]}"]
    rows = []
    for game in regime.games:
        for policy in dict.fromkeys(label.rpartition(", ")[0] for label in regime.contestants):
            earned = {}
            for way in learners.WAYS:
                runs = results.get((regime.title, game, f"{policy}, {way}"), {})
                if len(runs) >= seeds:
                    earned[way] = np.array([runs[seed].mean for seed in range(seeds)])
            if not {"wait", "immediate"} - earned.keys():
                cells = [pair(interval(earned[way]), 4) if way in earned else "" for way in learners.WAYS]
                less = pair(interval(earned["immediate"] - earned["wait"]), 4)
                rows.append([game, bold(policy), *cells, less if less[0] == "-" else f"+{less}"])
    return markdown(headings, rows)


def plot(regime: Regime, found: dict[str, Standing], results: Results, seeds: int, path: Path) -> None:
    """What was earned a visit so far, in each game: the three best of ours and of the peers."""
    ours = [label for label in found if label in learners.OURS]
    drawn = [*ours[:3], *[label for label in found if label not in ours][:3]]
    if DEFAULT in ours and DEFAULT not in drawn:
        drawn.append(DEFAULT)
    across = min(4, len(regime.games))
    down = -(-len(regime.games) // across)
    figure = report.plotting().Figure(figsize=(4.2 * across, 3.3 * down + 0.8), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes in panels[len(regime.games) :]:
        axes.set_axis_off()
    for axes, game in zip(panels, regime.games, strict=False):
        top = 0.0
        for label in drawn:
            runs = [results[regime.title, game, label][seed] for seed in range(seeds)]
            x = np.linspace(runs[0].n / POINTS, runs[0].n, POINTS).astype(int)
            middle, half = np.array(
                [interval(column) for column in (np.array([r.curve for r in runs]) / x).T]
            ).T
            top = max(top, float(middle.max()))
            style = "-" if label in ours else "--"
            (line,) = axes.plot(x, middle, style, label=label, linewidth=1.3)
            axes.fill_between(
                x, middle - half, middle + half, color=line.get_color(), alpha=0.15, linewidth=0
            )
        axes.set(title=game, ylim=(0, 1.25 * top))
        axes.grid(alpha=0.3)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(5, len(names)))
    figure.supxlabel("visits")
    figure.supylabel("earned a visit so far")
    figure.savefig(path, dpi=90)


def show(regime: Regime, results: Results, seeds: int, console: Console, folder: str | None) -> None:
    """The tables of a regime, and its picture."""
    found = standings(regime, results, seeds, [*regime.games])
    groups: dict[str, Any] = {}
    if regime.family == "immediate":
        parts = (("tuning", datasets.TUNING), ("seen", datasets.SEEN), ("held out", datasets.HELD_OUT))
        for name, those in parts:
            if games := [game for game in regime.games if game in those]:
                groups[name] = standings(regime, results, seeds, games)
    n = max(runs[0].n for (title, _, _), runs in results.items() if title == regime.title and 0 in runs)
    console.print(f"\n### {regime.title}: {len(regime.games)} games, at most {n:,} visits, {seeds} seeds\n")
    console.print(by_contestant(found, groups))
    if len(regime.games) > 1 and regime.family in ("immediate", "traffic"):
        console.print(by_game(regime, found, results, seeds))
    if regime.family == "silence":
        console.print(by_silence(regime, results, seeds))
    if folder:
        name = "".join(letter if letter.isalnum() else "-" for letter in regime.title)
        plot(regime, found, results, seeds, Path(folder, f"{name}.png"))


@click.command(help=__doc__)
@click.argument("contestants", nargs=-1)
@click.option("--seeds", default=5, show_default=True)
@click.option(
    "--visits", "n", default=2000, show_default=True, help="Of a set at most; 2.5 times as many of ads."
)
@click.option(
    "--on", multiple=True, help="Families of regimes: immediate, in flight, drift, traffic, silence."
)
@click.option("--quick", is_flag=True, help="Two seeds, 100 visits: whether it runs, not who wins.")
@click.option("--results", "path", metavar="FILE", help="JSON Lines: what is there is not played again.")
@click.option("--plot", "folder", metavar="FOLDER", help="Draw the curves, a PNG for each regime.")
def main(contestants, *, seeds: int, n: int, on, quick: bool, path, folder) -> None:
    seeds, n = (2, 100) if quick else (seeds, n)
    file = Path(path) if path else None
    results: Results = {}
    if file and file.exists():
        for line in file.read_text().splitlines():
            title, game, label, seed, run = json.loads(line)
            results.setdefault((title, game, label), {})[seed] = Run(*run)

    def keep(*played: Any) -> None:
        if file:
            with file.open("a") as lines:
                lines.write(json.dumps(played) + "\n")

    console = Console(width=240, highlight=False)
    for regime in regimes(n, quick):
        if on and regime.family not in on:
            continue
        there = [label for label, each in regime.contestants.items() if not each.missing]
        labels = [label for label in there if not contestants or label in contestants]
        if labels:
            compete(regime, labels, seeds, results, keep)
            show(regime, results, seeds, console, folder)
    if missing := [label for label, each in CONTESTANTS.items() if each.missing]:
        console.print(f"\nNot installed: {', '.join(missing)}.")


if __name__ == "__main__":
    main()
