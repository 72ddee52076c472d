"""What each policy would have earned on public logs: `python benchmarks/replay.py`.

Without arguments: all policies on the six bundled logs of the Open Bandit Dataset.
"""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.console import Console

from banditads import report
from banditads.logs.open_bandit import BUNDLED


@click.command(help=__doc__)
@click.argument("sources", metavar="[LOG]...", nargs=-1)
@click.option(
    "--policy", "specs", multiple=True, help="name:option=value,...; may be repeated. Default: all."
)
@click.option("--seed", default=0, show_default=True, help="Of the draws of rejection replay.")
@click.option("--quick", is_flag=True, help="Only random/men and bts/men, 1,000 rounds of each.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--markdown", is_flag=True, help="Print Markdown, for RESULTS.md.")
@click.option("--plot", type=click.Path(path_type=Path), help="Save learning curves here.")
def main(
    *,
    sources: tuple[str, ...],
    specs: tuple[str, ...],
    seed: int,
    quick: bool,
    as_json: bool,
    markdown: bool,
    plot: Path | None,
) -> None:
    reports = report.run(
        sources or (("random/men", "bts/men") if quick else BUNDLED),
        specs,
        seeds=[seed],
        limit=1000 if quick else None,
        console=Console(stderr=True),
    )
    if as_json:
        click.echo(msgspec.json.encode(reports))
    else:
        report.show(reports, Console(width=200 if markdown else None), markdown=markdown)
    if plot:
        report.plot(reports, plot)


if __name__ == "__main__":
    main()
