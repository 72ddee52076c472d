"""The `banditads` command: serve, key, demo, evaluate, verify, ... Each parses, calls one, prints.

Every setting is a flag of `serve`, made from `settings.py`; exit codes come from the one table below. What
takes long to import is imported by the command that needs it, so that `--help` is quick.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess  # nosec B404 # for `demo`, which starts this program with arguments of its own
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from . import __version__, errors, keys, settings

if TYPE_CHECKING:
    from .verification import Verdict

EXIT: Mapping[type[Exception], int] = {
    errors.Damaged: 65,
    errors.InUse: 73,
    errors.DiskFailure: 74,
    errors.Unavailable: 74,
    errors.Misconfigured: 78,
}


def main() -> None:
    """The command, with the exit codes of the table."""
    try:
        command()
    except (errors.Fatal, errors.Refused) as error:
        click.echo(f"banditads: {error}", err=True)
        _leave(EXIT.get(type(error), EXIT[errors.Misconfigured]))


def _leave(code: int) -> NoReturn:
    """End now. `sys.exit` would wait for a thread that waits for a client who never finishes asking."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def command() -> None:
    """An ad decision server that learns from every click.

    Exit codes: 0 clean, 2 usage, 65 damaged data, 73 data directory in use, 74 disk failure, 78 impossible
    configuration.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def _setting_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Every setting as a flag. Values stay text: settings.py converts and refuses them."""
    for row in reversed(list(settings.rows())):
        flag = settings.flag(row.name)
        unit = f" In {row.unit}." if row.unit else ""
        about = f"{row.help}{unit} [default: {row.shown or 'none'}]"
        if row.kind == "yes or no":
            option = click.option(f"{flag}/--no-{flag[2:]}", row.name, default=None, help=about)
        elif row.kind == "options":
            about += " May be repeated."
            option = click.option(flag, row.name, multiple=True, metavar="NAME=VALUE", help=about)
        else:
            option = click.option(flag, row.name, default=None, metavar=row.kind.upper(), help=about)
        function = option(function)
    return function


@command.command()
@click.option(
    "--config",
    envvar="BANDITADS_CONFIG",
    default="",
    metavar="FILE",
    help="TOML file of settings. Each is also BANDITADS_<NAME> in the environment; a flag beats the "
    "environment, which beats the file.",
)
@_setting_options
def serve(config: str, **given: Any) -> None:
    """Serve decisions over HTTP until SIGTERM.

    Starts where the data directory left off, whatever ended the last run.
    """
    try:
        pairs = {
            name: settings.options(given.pop(name)) for name in ("policy_options", "recommender_options")
        }
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    flags = {name: value for name, value in given.items() if value is not None}
    flags |= {name: each for name, each in pairs.items() if each}
    from . import server

    for number in (signal.SIGTERM, signal.SIGINT):  # before it serves; the server has its own way
        signal.signal(number, lambda *_: sys.exit(0))
    server.serve(settings.load(config, os.environ, flags), say=click.echo)
    _leave(0)


@command.group()
def key() -> None:
    """Make, list and take away API keys. A running server knows within a second."""


def _keys_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What says where the keys are, as `serve` takes it; the command gets the path."""

    @click.option("--data-dir", metavar="DIR", help="Of the server. [default: banditads-data]")
    @click.option("--keys-file", metavar="FILE", help="Where its keys are. [default: DIR.keys]")
    @click.option("--config", envvar="BANDITADS_CONFIG", default="", metavar="FILE", help="Its settings.")
    @wraps(function)
    def command(config: str, data_dir: str | None, keys_file: str | None, **given: Any) -> None:
        flags = {"data_dir": data_dir, "keys_file": keys_file}
        found = settings.load(config, os.environ, {name: each for name, each in flags.items() if each})
        function(keys.keys_path(found.keys_file, Path(found.data_dir)), **given)

    return command


@key.command("create")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(keys.SCOPES),
    help="What it may do; admin may do everything. May be repeated.",
)
@click.option("--name", default="", help="Of whom it is for, to know it again.")
@click.option("--rate", default=0.0, help="Requests a second, at most; 0 does not limit them. [default: 0]")
@_keys_options
def create_key(path: Path, scopes: tuple[Any, ...], name: str, rate: float) -> None:
    """Make a key and print it. It is kept nowhere, so this is the only time it is seen.

    From the first key on, the server asks for one.
    """
    click.echo(keys.create(path, scopes, name=name, rate=rate))
    click.echo(f"A hash of it is in {path}; a server with another file does not know it.", err=True)


@key.command("list")
@_keys_options
def list_keys(path: Path) -> None:
    """List the keys there are, without their secrets."""
    known = keys.read(path).values() if path.exists() else []
    for each in known:
        rate = f"{each.rate:g}/s" if each.rate else "unlimited"
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.created))
        click.echo(f"{each.id}  {created}  {','.join(each.scopes):19}  {rate:9}  {each.name}".rstrip())
    if not known:
        closed = "nobody is let in" if path.exists() else "everybody on this machine may do everything"
        click.echo(f"There are no keys in {path}: {closed}.", err=True)


@key.command("revoke")
@click.argument("id")
@_keys_options
def revoke_key(path: Path, id: str) -> None:
    """Take a key away, by its ID or by the key itself."""
    gone = keys.revoke(path, id)
    click.echo(f"revoked {gone.id} {gone.name}".rstrip())


FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


@command.command()
@click.option(
    "--visits", default=5000, show_default=True, type=click.IntRange(1, 10**6), help="Visits to make."
)
@click.option("--seed", default=1, show_default=True, help="Of the simulated visitors.")
@click.option("--policy", default="", help="Policy that picks and learns. [default: as for a server]")
@click.option("--port", default=0, help="Port of the server. [default: a free one]")
@click.option("--plot", type=FILE, help="Save the learning curve as a PNG here (needs `banditads[plots]`).")
def demo(visits: int, seed: int, policy: str, port: int, plot: Path | None) -> None:
    """Watch it learn: a real server, 80 real items, simulated visitors.

    Starts a server on a temporary directory and visits it over HTTP. The visitors' taste depends on who they
    are and on the time of day; the picture shows their clicks against picking at random and against the best
    possible.
    """
    from rich.console import Console

    from .client import Client
    from .demo import plot as draw
    from .demo import show
    from .logs import open_bandit
    from .report import plotting
    from .simulation import World
    from .simulation import visits as visiting

    if plot:
        plotting()  # before the work, not after it
    console = Console()
    world = World(open_bandit.items("all"), seed)
    with tempfile.TemporaryDirectory(prefix="banditads-demo-") as folder:
        arguments = [
            "--data-dir",
            f"{folder}/data",
            "--catalog",
            "demo",
            "--policy",
            policy,
            "--port",
            str(port),
        ]
        with _server(arguments) as url, Client(url) as client:
            console.print(f"A server answers at {url}; {visits:,} visitors come.", highlight=False)
            summary = show(visiting(world, client.choose, client.reward, visits), visits, console)
    if plot:
        draw(summary, plot)
        console.print(f"The learning curve is in {plot}.", highlight=False)


@contextmanager
def _server(arguments: list[str]) -> Iterator[str]:
    """A server of its own in another process, as long as it is needed; gives its URL."""
    command = [sys.executable, "-m", "banditads", "serve", *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(settings.PREFIX)}
    with subprocess.Popen(  # nosec B603 # no shell, and no word of it is from outside
        command, stdout=subprocess.PIPE, text=True, env=clean
    ) as process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            if not words:
                raise errors.Misconfigured(
                    f"the server ended with exit code {process.wait()}; it said why above"
                )
            yield words[3]
        finally:
            process.terminate()


@command.command()
@click.argument("sources", metavar="LOG...", nargs=-1, required=True)
@click.option(
    "--policy",
    "specs",
    multiple=True,
    metavar="NAME[:OPTION=VALUE,...]",
    help="Policy to judge, such as vw or vw:epsilon=0.05. May be repeated. [default: all there are]",
)
@click.option(
    "--estimator", "estimators", metavar="NAME", multiple=True, help="Column of the table; may be repeated."
)
@click.option(
    "--since",
    metavar="TIME",
    help="Judge decisions from then on: seconds since the epoch, or ISO 8601 in UTC.",
)
@click.option("--until", metavar="TIME", help="Judge decisions before then.")
@click.option("--first-offset", type=click.IntRange(0), help="Judge decisions from this offset on.")
@click.option("--end-offset", type=click.IntRange(1), help="Judge decisions before this offset.")
@click.option("--warm", is_flag=True, help="Let policies learn from what came before.")
@click.option(
    "--by",
    default="",
    metavar="NAME",
    help="Also by the values of a context feature, or `placement` or `ad`.",
)
@click.option(
    "--seed",
    "seeds",
    default=(0,),
    multiple=True,
    show_default=True,
    help="Of the draws of rejection replay. May be repeated.",
)
@click.option("--limit", type=click.IntRange(1), help="Only so many rounds of each log. [default: all]")
@click.option("--reward-min", type=float, help="Smallest reward in the log. [default: the server's, or 0]")
@click.option("--reward-max", type=float, help="Largest reward in the log. [default: the server's, or 1]")
@click.option(
    "--ray",
    default="",
    metavar="ADDRESS",
    help="Policies at the same time, on a Ray cluster; `local` starts one here (needs `banditads[ray]`).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--plot", type=FILE, help="Save the learning curves as a PNG here (needs `banditads[plots]`).")
@click.option("--parent", type=int, hidden=True, help="A server: end with it, and tell it how far this is.")
def evaluate(
    *,
    sources: tuple[str, ...],
    specs: tuple[str, ...],
    estimators: tuple[str, ...],
    since: str | None,
    until: str | None,
    plot: Path | None,
    as_json: bool,
    parent: int | None,
    **given: Any,
) -> None:
    """Say what other policies would have earned on logged decisions.

    LOG is a data directory, a Parquet or dsjson export, a file of the Open Bandit Dataset, or one of its
    bundled parts by name: random/all, random/men, random/women, bts/all, bts/men, bts/women. `replay` and
    `evaluate` are two names of this command.
    """
    import msgspec
    from rich.console import Console

    from . import ope, report
    from .forking import end_with, go_first
    from .selecting import Selection, moment

    for name in estimators:
        ope.check(name)
    with suppress(OSError):  # there may be a server on this machine, and its requests come first
        os.nice(10)
    if parent:
        end_with(parent)
        go_first()
    try:
        window: dict[str, Any] = {
            name: None if text is None else moment(text)
            for name, text in (("since", since), ("until", until))
        }
    except ValueError as error:
        raise click.UsageError(f"--since and --until take seconds or ISO 8601: {error}") from None
    window |= {name: given.pop(name) for name in ("first_offset", "end_offset", "warm", "by")}
    if plot:
        report.plotting()  # before the work, not after it
    console = Console(stderr=True)
    reports = report.run(
        sources,
        specs,
        selection=Selection(**window).check(),
        console=console,
        progress=_told() if parent else None,
        **given,
    )
    if as_json or parent:
        click.echo(msgspec.json.encode(reports))
    else:
        report.show(reports, Console(), estimators=estimators or report.ESTIMATORS)
    if plot:
        report.plot(reports, plot)
        console.print(f"The learning curves are in {plot}.", highlight=False)


command.add_command(evaluate, "replay")


def _told() -> Callable[[int], None]:
    """Says on a line how far it is, at most twice a second."""
    said = 0.0

    def tell(done: int) -> None:
        nonlocal said
        if time.monotonic() - said >= 0.5:
            said = time.monotonic()
            click.echo(done)

    return tell


SHOWN = 20  # traces of a user that are listed, of each kind


@command.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--key-file", default="", metavar="FILE", help="Secret of the server. [default: DIR.key]")
@click.option("--erased", metavar="ID", help="Also prove that nothing of this user is left.")
def verify(folder: Path, key_file: str, erased: str | None) -> None:
    """Read a whole data directory and check it.

    Checks every checksum, folds the journal from its beginning, and compares the state with the snapshots.
    With --erased it also looks for the user's id and pseudonym in every file, and in what snapshots hold
    packed, and exits with 65 if anything is about that user. Changes nothing; the server may be running.
    """
    if erased == "":
        raise click.UsageError("--erased needs the id of a user")
    from . import signing
    from .verification import verify as check

    secret = signing.load(signing.key_path(key_file, folder))
    key = signing.derive(secret, "snapshots")
    size = sum(path.stat().st_size for path in folder.glob("*.journal"))
    with _progress("folding", size) as advance:
        verdict = check(folder, key, advance)
    click.echo(
        f"{folder} is whole: events {verdict.first} to {verdict.end - 1}, "
        f"{len(verdict.snapshots)} snapshots compared, state {verdict.digest}"
    )
    if verdict.torn_bytes:
        click.echo(
            f"It ends in {verdict.torn_bytes} bytes of a record that was never finished, or is being written "
            "now; nothing that was acknowledged is in them, unless the disk or a copy lost its end."
        )
    if verdict.erasing:
        click.echo(
            f"Records of {verdict.erasing} users are still being erased, or will be by the next start; "
            "until then snapshots may differ from the journal."
        )
    if erased:
        _prove_erased(folder, key, erased, signing.Pseudonyms(secret)(erased), verdict)


def _prove_erased(folder: Path, key: bytes, user_id: str, pseudonym: str, verdict: Verdict) -> None:
    """Say what is left of a user. Raises `Damaged` if anything is."""
    from .verification import traces

    found = list(traces(folder, key, user_id, pseudonym))
    theirs = [each for each in found if each.sure]
    others = [each for each in found if not each.sure]
    for traced, what in (
        (theirs, "the user's pseudonym"),
        (others, "the letters of the id, in data that is not under this user"),
    ):
        for each in traced[:SHOWN]:
            click.echo(f"{each}: {what}")
        if len(traced) > SHOWN:
            click.echo(f"... and {len(traced) - SHOWN} more: {what}")
    if theirs:
        raise errors.Damaged(
            f"{folder} names this user in {len(theirs)} places: not erased yet, or back since then"
        )
    click.echo(f"Nothing in {folder} is about this user: 0 places with the pseudonym.")
    if verdict.first:
        click.echo(
            f"The journal begins at event {verdict.first}: what was learned from the user before cannot be "
            "told from the rest, and is still in the model."
        )
    elif verdict.snapshots:
        click.echo("The state that was saved equals a replay without that user's data.")
    else:
        click.echo("No saved state is there to be compared; the next start makes it from the journal.")


@command.command()
@click.argument("source", metavar="LOG")
@click.option("--parquet", type=FILE, help="Write a Parquet file (needs `banditads[parquet]`).")
@click.option("--dsjson", type=FILE, help="Write JSON lines as `vw --dsjson` reads them.")
def export(source: str, parquet: Path | None, dsjson: Path | None) -> None:
    """Write finished decisions for other tools: one row each, with context, ads, probabilities and reward.

    LOG is a data directory, or anything else that `replay` reads.
    """
    if not parquet and not dsjson:
        raise click.UsageError("give --parquet FILE or --dsjson FILE")
    from . import logs

    for name, path in (("parquet", parquet), ("dsjson", dsjson)):
        if path:
            with _progress(f"writing {path}", None) as advance:
                log = logs.read(source)
                count = logs.write(name, (advance(1) or each for each in log), path)
            waiting = len(list(log.waiting()))
            left = f"; {waiting} that still wait for their reward are left out" if waiting else ""
            click.echo(f"{count} decisions in {path}{left}")


@command.group("import")
def import_() -> None:
    """Take users, or what they did, from CSV, JSON Lines or Parquet files.

    Writes into a data directory that no server holds or, with --url, to a running server. Importing the same
    users twice changes nothing; importing the same events twice counts them twice.
    """


def _import_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Where an import goes to; the command gets it as `target`."""

    @click.option("--data-dir", metavar="DIR", help="Directory to write into. [default: banditads-data]")
    @click.option("--key-file", metavar="FILE", help="Secret of the server. [default: DIR.key]")
    @click.option("--config", envvar="BANDITADS_CONFIG", default="", metavar="FILE", help="Its settings.")
    @click.option("--url", default="", help="Send it to the server there instead.")
    @click.option("--key", envvar="KEY", default="", help="Its API key, of scope `users`; or $KEY.")
    @click.option("--user", metavar="COLUMN", help="Column of the user's id.")
    @click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
    @wraps(function)
    def command(
        config: str, data_dir: str | None, key_file: str | None, url: str, key: str, **given: Any
    ) -> None:
        flags = {"data_dir": data_dir, "key_file": key_file}
        found = settings.load(config, os.environ, {name: each for name, each in flags.items() if each})
        with _taker(found, url, key) as taker, _progress(f"reading {given['file']}", None) as advance:
            from . import importing

            for line in importing.lines(function(taker=taker, progress=advance, now=time.time(), **given)):
                click.echo(line)

    return command


@contextmanager
def _taker(found: settings.Settings, url: str, key: str) -> Iterator[Any]:
    """Where an import goes to."""
    from . import importing
    from .client import Client, Failed

    if url:
        try:
            with Client(url, timeout=60.0, key=key) as client:
                yield importing.Server(client)
        except (Failed, ValueError) as error:
            raise errors.Unavailable(f"the server did not take it: {error}") from None
        return
    from . import server
    from .directory import read_config
    from .state import State

    config = read_config(Path(found.data_dir))
    with server.opened(found, State.of(config) if config else None) as engine:
        yield importing.Directory(engine, server.pseudonyms(found))


@import_.command("users")
@_import_options
@click.option("--consent", is_flag=True, help="All of them consent to what is kept of them.")
@click.option("--consent-column", metavar="COLUMN", help="Column that says who does: yes or no.")
@click.option("--word", "words", multiple=True, metavar="COLUMN", help="Column of numbers that are names.")
def import_users(user: str | None, consent_column: str | None, **given: Any) -> Any:
    """Users: a row each, with their id, whether they consent, and attributes."""
    from . import importing

    return importing.users(names=importing.Names(user=user, consent=consent_column), **given)


@import_.command("events")
@_import_options
@click.option("--time", metavar="COLUMN", help="Column of the time: seconds, milliseconds or ISO 8601.")
@click.option("--item", metavar="COLUMN", help="Column of the item.")
@click.option("--category", metavar="COLUMN", help="Column of the item's category.")
@click.option("--kind", metavar="COLUMN", help="Column of what was done; where there is none, it is a view.")
@click.option("--amount", metavar="COLUMN", help="Column of the amount.")
def import_events(file: Path, taker: Any, now: float, progress: Any, **names: Any) -> Any:
    """What users did: a row each. Columns that have usual names are found without being named."""
    from . import importing

    return importing.acts(file, taker, importing.Names(**names), now=now, progress=progress)


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount, total=None: bar.update(task, advance=amount, total=total)
