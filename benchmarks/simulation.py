"""What each policy earns from the demo's visitors, in process: `python benchmarks/simulation.py`.

Clicks as a multiple of what random ads earn, and as a share of what the best ad for every visit earns. The
world is seeded and independent of every policy's model; see `banditads/simulation.py`.
"""

from __future__ import annotations

import statistics

import click
from rich.console import Console
from rich.table import Table

from banditads import policies
from banditads.logs import open_bandit
from banditads.sampling import pick, uniform
from banditads.simulation import World, visits


def run(spec: str, seed: int, n: int) -> tuple[float, float]:
    """(clicks / random, clicks / best) of one policy in one world; it learns from each visit at once."""
    ads = tuple(sorted(open_bandit.items("all"), key=lambda ad: ad.id))
    world, policy, open_choices = World(ads, seed), policies.from_spec(spec), {}

    def choose(event_id, user_id, context):
        pmf = policy.pmf(context, ads).tolist()
        shown = pick(pmf, uniform(event_id))
        open_choices[event_id] = context, shown, pmf[shown]
        return ads[shown].id, event_id

    def reward(event_id, value):
        context, shown, propensity = open_choices.pop(event_id)
        policy.learn(context, ads, shown, value, propensity)

    seen = list(visits(world, choose, reward, n))
    clicks = sum(visit.clicked for visit in seen)
    return clicks / sum(visit.uniform for visit in seen), clicks / sum(visit.best for visit in seen)


@click.command(help=__doc__)
@click.argument("specs", metavar="[POLICY]...", nargs=-1)
@click.option("--seeds", default=5, show_default=True)
@click.option("--visits", "n", default=5000, show_default=True)
def main(specs: tuple[str, ...], seeds: int, n: int) -> None:
    table = Table("policy", "clicks / random", "worst seed", "best seed", "clicks / best possible")
    for spec in specs or policies.names():
        ratios, shares = zip(*(run(spec, seed, n) for seed in range(seeds)), strict=True)
        cells = (statistics.median(ratios), min(ratios), max(ratios), statistics.median(shares))
        table.add_row(spec, *(f"{each:.2f}" for each in cells))
    Console().print(table)


if __name__ == "__main__":
    main()
