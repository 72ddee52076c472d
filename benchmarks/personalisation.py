"""Whether knowing the visitor pays: `python benchmarks/personalisation.py --plot personalisation.png`.

Every contestant meets the same visitors in the same order and is told at once of every click and of every
visit without one. Each seed is a world of its own; intervals are 95 % (Student's t over the seeds). "times
uniform" is compared within a seed, so that an easier world counts for nobody. The audiences and their
structure are in `audiences.py`.

To enter another contestant, put it into `CONTESTANTS`: something with `choose` and `reward`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import audiences
import click
import numpy as np
from audiences import Audience, Floats, Invented, MovieLens, OpenBandit, Visit
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import stats

from banditads import recommenders, report
from banditads.choosing import Request
from banditads.engine import Engine
from banditads.events import Ad, AdsPut, Chosen, Settled
from banditads.journal import connect
from banditads.sampling import uniform
from banditads.signing import EventIds
from banditads.state import State

POINTS = 100  # of a curve
PROPOSALS = 32  # ads that the hybrid leaves to the bandit, where there are more than 100
FLOOR = 0.01  # of probability, shared by all ads, whoever chooses


class Contestant(Protocol):
    """What decides which ad is shown."""

    def choose(self, visit: Visit, ads: Sequence[Ad]) -> int:
        """Which of `ads`, the candidates of this visit, is shown. `visit.chances` must not be looked at."""

    def reward(self, visit: Visit, value: float) -> None:
        """What the ad earned that was shown at this visit: 1 for a click, else 0."""


class Server:
    """The real engine with a policy, in this process: what `banditads serve` does for every request."""

    def __init__(
        self, audience: Audience, seed: int, *, policy: str, recommender: str = "", **options: Any
    ) -> None:
        self.now, self.advised, self.known = 0.0, bool(recommender), set[str]()
        more: dict[str, Any] = {}
        if recommender:
            more = {"recommender": recommender, "recommend_from": 0, "advise": True}
            more["recommender_options"] = {"prior": audience.rate}
        self.engine = Engine(
            State(policy, options, **more),
            connect("memory:"),
            ids=EventIds(b"k" * 32),
            clock=lambda: self.now,
            floor=FLOOR,
            salt=f"seed {seed}",
            **{"max_scored": 100, "proposals": PROPOSALS} if recommender else {},
        )
        self.engine.put_ads(audience.ads)

    def choose(self, visit: Visit, ads: Sequence[Ad]) -> int:
        """As `GET /choose`, with the visitor's id and what a site knows."""
        self.now = visit.at
        if self.advised and visit.user not in self.known:
            self.known.add(visit.user)
            self.engine.put_users({visit.user: {}})  # of who does not consent nothing is learned
        among = None if visit.candidates is None else tuple(ad.id for ad in ads)
        request = Request(visit.context, visit.user, ads=among)
        event, _ = self.engine.choose(request, f"visit-{visit.number}")
        assert isinstance(event, Chosen)
        return [ad.id for ad in ads].index(event.ad_id)

    def reward(self, visit: Visit, value: float) -> None:
        """As `POST /reward`."""
        self.engine.reward(f"visit-{visit.number}", value)
        self.engine.journal.drop_before(self.engine.state.applied)  # not what is measured here


class Ranking:
    """A recommender alone: the ad with the best score, or with probability `FLOOR` any of them."""

    def __init__(self, audience: Audience, seed: int, *, name: str) -> None:
        self.recommender = recommenders.make(name, prior=audience.rate)
        self.recommender.apply(AdsPut(0.0, audience.ads), range(len(audience.ads)))
        self.seed, self.rows = seed, {ad.id: row for row, ad in enumerate(audience.ads)}

    def choose(self, visit: Visit, ads: Sequence[Ad]) -> int:
        """Those who are equal take turns by the dice."""
        dice, salt = uniform(f"visit-{visit.number}", f"seed {self.seed}"), f"among, seed {self.seed}"
        scores = self.recommender.scores(visit.context, visit.user)[[self.rows[ad.id] for ad in ads]]
        best = np.arange(len(ads)) if dice < FLOOR else np.flatnonzero(scores == scores.max())
        self.shown = ads[best[int(uniform(f"visit-{visit.number}", salt) * len(best))]]
        return [ad.id for ad in ads].index(self.shown.id)

    def reward(self, visit: Visit, value: float) -> None:
        """As the state would tell it of a user who consents."""
        event = Chosen(visit.at, f"visit-{visit.number}", (self.shown.id,), b"", 0, visit.context)
        settled = Settled(event, (self.shown,), value, visit.at)
        self.recommender.learn(settled, self.rows[self.shown.id], value, visit.user)


def popular(audience: Audience, seed: int) -> Contestant:
    """The click rate of each ad, whoever comes: Thompson sampling, beginning with one click at `rate`."""
    return Server(audience, seed, policy="thompson", alpha=1.0, beta=max(0.5, 1 / audience.rate - 1))


# Both bandits explore alike. Tuned on seeds from 100 on: see RESULTS.md.
GREEDY: dict[str, Any] = {"exploration": "epsilon", "epsilon": 0.02}
# Label -> how it is made from an audience and a seed.
Make = Callable[[Audience, int], Contestant]
CONTESTANTS: dict[str, Make] = {
    "uniform": partial(Server, policy="uniform"),
    "popular": popular,
    "content": partial(Ranking, name="content"),
    "collaborative": partial(Ranking, name="collaborative"),
    "hybrid": partial(Ranking, name="hybrid"),
    "bandit": partial(Server, policy="vw", **GREEDY),
    "bandit + hybrid": partial(Server, policy="vw", recommender="hybrid", trust=1.0, **GREEDY),
    "ensemble": partial(Server, policy="ensemble"),
    "ensemble + hybrid": partial(Server, policy="ensemble", recommender="hybrid"),
}


class Run(NamedTuple):
    """One contestant in one world."""

    clicks: Floats  # (n_visits,), 0 or 1; NaN where nobody knows
    best: float  # clicks a visit of who knows everything
    seconds: float


def play(make: Make, audience: Audience, seed: int, n: int) -> Run:
    """Visitors come, are shown an ad, and click or do not. The dice are the same for every contestant."""
    contestant, clicks, best = make(audience, seed), np.zeros(n), 0.0
    started = time.process_time()
    for visit in audience.visits(n):
        places = range(len(audience.ads)) if visit.candidates is None else visit.candidates
        ads = audience.ads if visit.candidates is None else [audience.ads[place] for place in places]
        pick = contestant.choose(visit, ads)
        dice = uniform(f"click {visit.number}", f"seed {seed}")
        click = audience.shown(visit, places[pick], dice)
        best += float(visit.chances.max())
        if click is None:
            clicks[visit.number] = np.nan
        else:
            clicks[visit.number] = click
            contestant.reward(visit, click)
    return Run(clicks, best / n, time.process_time() - started)


def interval(values: Floats) -> tuple[float, float]:
    """(mean, half of the 95 % interval) of values, shape (n_seeds,)."""
    if len(values) < 2 or np.isinf(values).any():
        return float(values.mean()), float("nan")
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(error * stats.t.ppf(0.975, len(values) - 1))


def table(runs: dict[str, list[Run]], n: int) -> Table:
    """A row for each contestant."""
    found = Table(box=box.MARKDOWN)
    found.add_column("contestant", no_wrap=True)
    for heading in (
        "clicks a visit",
        "in the last quarter",
        "times uniform",
        "of the best possible",
        "CPU us a visit",
    ):
        found.add_column(heading, justify="right", no_wrap=True)
    rates = {label: np.array([_mean(run.clicks) for run in each]) for label, each in runs.items()}
    for label, each in runs.items():
        late = np.array([_mean(run.clicks[-n // 4 :]) for run in each])
        share = np.array([_mean(run.clicks) / run.best for run in each])
        columns = [(rates[label], "{:.4f} ± {:.4f}"), (late, "{:.4f} ± {:.4f}")]
        if rates["uniform"].all():
            columns.append((rates[label] / rates["uniform"], "{:.2f} ± {:.2f}"))
        cells = [text.format(*interval(values)) for values, text in columns]
        cells += ["not enough to say"] * (3 - len(cells))
        cost = np.median([run.seconds for run in each]) / n * 1e6
        found.add_row(label, *cells, "-" if np.isnan(share).any() else f"{share.mean():.2f}", f"{cost:,.0f}")
    return found


def _mean(clicks: Floats) -> float:
    """Of what is known; 0 if nothing is."""
    return float(np.nansum(clicks) / max(1, (~np.isnan(clicks)).sum()))


def compared(runs: dict[str, list[Run]]) -> str:
    """How much more the last contestant earns than each other one in the same world, in clicks a visit."""
    *others, last = runs
    parts = []
    for label in others:
        more = [
            _mean(ours.clicks) - _mean(theirs.clicks)
            for ours, theirs in zip(runs[last], runs[label], strict=True)
        ]
        parts.append("{} {:+.4f} ± {:.4f}".format(label, *interval(np.array(more))))
    return f"{last}, less {', '.join(parts)}\n"


def plot(results: dict[str, dict[str, list[Run]]], path: str) -> None:
    """Cumulative click rate over the visits, with the interval as a shade."""
    figure = report.plotting().Figure(figsize=(6.5 * len(results), 4.5), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, (title, runs) in zip(panels, results.items(), strict=True):
        for label, each in runs.items():
            n = len(each[0].clicks)
            x = np.unique(np.linspace(n / POINTS, n, POINTS).astype(int))
            counted = [(np.nancumsum(run.clicks), np.cumsum(~np.isnan(run.clicks))) for run in each]
            rates = np.array([clicks[x - 1] / np.maximum(1, seen[x - 1]) for clicks, seen in counted])
            middle, half = np.array([interval(column) for column in rates.T]).T
            (line,) = axes.plot(x, middle, label=label)
            axes.fill_between(x, middle - half, middle + half, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(title=title, xlabel="visits", ylabel="clicks a visit so far", ylim=(0, None))
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def compete(title: str, make_audience, labels: Sequence[str], seeds: range, n: int) -> dict[str, list[Run]]:
    """Every contestant in every world."""
    runs: dict[str, list[Run]] = {label: [] for label in labels}
    for seed in seeds:
        audience = make_audience(seed)
        for label in labels:
            runs[label].append(play(CONTESTANTS[label], audience, seed, n))
            print(f"{title}, seed {seed}: {label} {_mean(runs[label][-1].clicks):.4f}", file=sys.stderr)
    return runs


@click.command(help=__doc__)
@click.argument("contestants", nargs=-1, type=click.Choice([*CONTESTANTS]))
@click.option("--seeds", default=10, show_default=True)
@click.option("--first-seed", "first", default=0, show_default=True)
@click.option("--visits", "n", default=20_000, show_default=True, help="At most 50,000.")
@click.option("--quick", is_flag=True, help="Two seeds, 2,000 visits: whether it runs, not who wins.")
@click.option("--on", multiple=True, type=click.Choice(["invented", "movielens", "openbandit"]))
@click.option("--plot", "path", metavar="FILE", help="Draw the curves: PNG, SVG or PDF.")
def main(contestants, *, seeds: int, first: int, n: int, quick: bool, on, path: str | None) -> None:
    labels = [*dict.fromkeys(["uniform", *(contestants or CONTESTANTS)])]
    seeds, n = (2, 2000) if quick else (seeds, n)
    console = Console(width=200, highlight=False)
    results: dict[str, dict[str, list[Run]]] = {}

    def show(title: str, make_audience: Callable[[int], Audience], n: int) -> None:
        results[title] = runs = compete(title, make_audience, labels, range(first, first + seeds), n)
        console.print(f"### {title}, {n:,} visits, {seeds} seeds\n")
        console.print(table(runs, n))

        console.print(compared(runs))
        if path:
            plot(results, path)

    if not on or "movielens" in on:
        audiences.fetched(lambda folder: show("MovieLens 100K", partial(MovieLens, folder), n))
    if not on or "invented" in on:
        show("invented audience", Invented, n)
    if not on or "openbandit" in on:
        show("Open Bandit Dataset", OpenBandit, min(n, 10_000))


if __name__ == "__main__":
    main()
