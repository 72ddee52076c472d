"""Settings as data: name, type, default, unit and help of everything that can be configured.

A flag beats the environment (`BANDITADS_<NAME>`), which beats the TOML file, which beats the default. An
unknown or impossible setting is refused by name and with its source; nothing is ever ignored silently.

>>> load(flags={"reward_wait": "10m"}, environ={"BANDITADS_PORT": "9000"}).reward_wait
600.0
>>> load(flags={"prot": 9000})
Traceback (most recent call last):
banditads.errors.Misconfigured: prot in the command line is not a setting; did you mean port?
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from . import worth
from .errors import Invalid, Misconfigured
from .parsing import origins

PREFIX = "BANDITADS_"


UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}  # in seconds


def duration(text: str) -> float:
    """Seconds of a number, or of a number with a unit (`250ms`, `30s`, `10m`, `24h`, `7d`).

    >>> duration("1.5h"), duration("90")
    (5400.0, 90.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text)
    if not match or (match[2] or "s") not in UNITS:
        raise ValueError(f"{text!r} is not a duration such as 250ms, 30s, 10m, 24h or 7d")
    return float(match[1]) * UNITS[match[2] or "s"]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every setting there is. The text of each is its `--help` and its row in the documentation."""

    data_dir: Annotated[
        str, Meta(description="Directory of the journal and the snapshots; made if it is not there.")
    ] = "banditads-data"
    key_file: Annotated[
        str,
        Meta(
            description="Secret that signs event ids and snapshots, and makes pseudonyms of users' ids; made "
            "at the first start. Must lie outside the data directory. Empty: beside it, with `.key` appended "
            "to its name."
        ),
    ] = ""
    keys_file: Annotated[
        str,
        Meta(
            description="API keys, hashed, made by `banditads key create`; without this file everybody who "
            "reaches the port may do everything. Must lie outside the data directory. Empty: beside it, with "
            "`.keys` appended to its name."
        ),
    ] = ""
    host: Annotated[
        str, Meta(description="Address to listen on; one that is not loopback needs keys, or `allow_remote`.")
    ] = "127.0.0.1"
    port: Annotated[int, Meta(description="Port to listen on; 0 takes a free one.", ge=0, le=65535)] = 8080
    allow_remote: Annotated[
        bool,
        Meta(
            description="Listen on an address that is not loopback, though there are no keys: whoever "
            "reaches the port may decide, reward and change the catalog. For a container or behind a proxy."
        ),
    ] = False
    threads: Annotated[
        int,
        Meta(
            description="Requests under way at the same time, at most; one whose client sends its body "
            "slowly holds a thread, which is made when it is needed, and so does a batch, a click's redirect "
            "or a change of the catalog that waits for the disk.",
            ge=1,
            le=16384,
            extra={"unit": "threads"},
        ),
    ] = 4096
    one_processor: Annotated[
        bool,
        Meta(
            description="Stay on one processor, drawn at the start. Python runs one thread at a time anyway, "
            "and handing over to a thread on another processor takes longer than a request.",
        ),
    ] = True
    body_timeout: Annotated[
        float,
        Meta(
            description="A request whose body has not arrived after this time loses its connection.",
            ge=0.1,
            le=3600,
            extra={"unit": "seconds"},
        ),
    ] = 10.0
    catalog: Annotated[
        str,
        Meta(
            description="JSON Lines file of ads that an empty catalog begins with; `demo` is the bundled one "
            "of 80 items. Later changes are made over HTTP, and stay."
        ),
    ] = ""
    policy: Annotated[
        str,
        Meta(
            description="Policy that spreads probability over the ads and learns. Empty: the one that the "
            "data directory was made with, or `ensemble` for a new one."
        ),
    ] = ""
    policy_options: Annotated[
        dict[str, bool | int | float | str | list[str]],
        Meta(description="Options of the policy, as `name=value`; a table in TOML."),
    ] = {}
    challengers: Annotated[
        str,
        Meta(
            description="Policies that learn from the same traffic without being shown, separated by spaces, "
            "each as `name` or `name:option=value,option=value`; at most 8. Each takes as much time as "
            "if it decided."
        ),
    ] = ""
    promote: Annotated[
        Literal["never", "ask", "auto"],
        Meta(
            description="What happens when a challenger certainly earns more: nothing; `/readyz` says so, "
            "and somebody may promote it; or it decides from then on."
        ),
    ] = "ask"
    promote_after: Annotated[
        int,
        Meta(
            description="Decisions that must be counted before a challenger can be said to earn more.",
            ge=1,
            le=10**9,
            extra={"unit": "decisions"},
        ),
    ] = 1000
    floor: Annotated[
        float,
        Meta(
            description="Share of probability spread evenly over all eligible ads, on top of the policy's "
            "own exploration, so that every ad is tried and any other policy can be judged from the log.",
            ge=0,
            le=1,
        ),
    ] = 0.01
    salt: Annotated[
        str,
        Meta(
            description="Changes every draw; two servers that share event ids need two salts.", max_length=64
        ),
    ] = ""
    max_scored: Annotated[
        int,
        Meta(
            description="Where more ads than this are eligible, a recommender proposes `proposals` of them, "
            "and the policy decides among those. Below 500 only with a `recommender` that is named.",
            ge=16,
            le=100_000,
            extra={"unit": "ads"},
        ),
    ] = 1000
    proposals: Annotated[
        int,
        Meta(
            description="Ads that are proposed then: seven of eight for their score, the others drawn evenly "
            "from all that are eligible. At most `max_scored`.",
            ge=16,
            le=10_000,
            extra={"unit": "ads"},
        ),
    ] = 256
    recommender: Annotated[
        str,
        Meta(
            description="Recommender whose score orders a catalog that is too large for the policy. One that "
            "is named learns however few ads there are; empty: `crosses`, once there are 500."
        ),
    ] = ""
    recommender_options: Annotated[
        dict[str, bool | int | float | str | list[str]],
        Meta(description="Options of the recommender, as `name=value`; a table in TOML."),
    ] = {}
    advise: Annotated[
        bool,
        Meta(
            description="Tell the policy what the recommender says of each ad: the log odds of a reward are "
            "the feature `recommended`, journaled with the decision. The policy remains the one who decides."
        ),
    ] = False
    reward_wait: Annotated[
        float,
        Meta(
            description="How long a decision waits for its reward.",
            gt=0,
            le=30 * 86400,
            extra={"unit": "seconds", "parse": "duration"},
        ),
    ] = 600.0
    silence: Annotated[
        Literal["", "wait", "immediate"],
        Meta(
            description="When the policy learns that a decision earned nothing: `wait`, when `reward_wait` "
            "is over; `immediate`, when it is made, and its reward when one comes. Empty: what the data "
            "directory was made with; for a new one, or another policy, `immediate` with `ensemble`, else "
            "`wait`."
        ),
    ] = ""
    default_reward: Annotated[float, Meta(description="Reward that is learned when none came in time.")] = 0.0
    reward_min: Annotated[float, Meta(description="Smallest reward that is accepted.", ge=-1e6, le=1e6)] = 0.0
    reward_max: Annotated[float, Meta(description="Largest reward that is accepted.", ge=-1e6, le=1e6)] = 1.0
    reward_aggregation: Annotated[
        Literal["earliest", "sum", "max"],
        Meta(
            description="What counts of several rewards of a decision: the `earliest`, which is learned at "
            "once; or their `sum` (within the range) or `max`, learned when `reward_wait` is over or as soon "
            "as it cannot change any more."
        ),
    ] = "earliest"
    click_reward: Annotated[
        str,
        Meta(
            description="Reward of a click, cut off where the range of rewards ends: a number, or a number "
            "among the features of the ad, as in `ad.bid` or `ad.bid / 10`. Empty: none."
        ),
    ] = "1"
    conversion_reward: Annotated[
        str,
        Meta(
            description="Reward of a conversion, cut off likewise: a number, `value`, or `value` times or by "
            "a number, as in `value / 100`. Empty: none."
        ),
    ] = "value"
    dwell_reward: Annotated[
        str,
        Meta(
            description="Reward of the seconds that a visitor stayed on the landing page, as in "
            "`value / 60`. Empty: none, and they are not written down."
        ),
    ] = ""
    cors_origins: Annotated[
        str,
        Meta(
            description="Origins of pages, separated by spaces, whose scripts may ask for ads, such as "
            "`https://shop.example`; those of the server itself need not be listed."
        ),
    ] = ""
    max_pending: Annotated[
        int,
        Meta(
            description="Decisions that may wait for a reward; beyond, the oldest is given up "
            "and not learned from.",
            ge=1,
            le=50_000_000,
            extra={"unit": "decisions"},
        ),
    ] = 1_000_000
    max_pending_bytes: Annotated[
        int,
        Meta(
            description="What decisions that wait for a reward may take together, packed; "
            "memory is more. Beyond, the oldest are given up.",
            ge=1,
            le=2**40,
            extra={"unit": "bytes"},
        ),
    ] = 2**30
    max_settled: Annotated[
        int,
        Meta(
            description="Settled decisions remembered to answer repeated and conflicting rewards.",
            ge=0,
            le=50_000_000,
            extra={"unit": "decisions"},
        ),
    ] = 1_000_000
    max_users: Annotated[
        int,
        Meta(
            description="Users of whom a profile is kept; beyond, the one who was idle longest is forgotten.",
            ge=1,
            le=100_000_000,
            extra={"unit": "users"},
        ),
    ] = 1_000_000
    user_half_life: Annotated[
        float,
        Meta(
            description="What a user did counts half after this time.",
            ge=1,
            le=10 * 365 * 86400,
            extra={"unit": "seconds", "parse": "duration"},
        ),
    ] = 30 * 86400.0
    fsync: Annotated[
        Literal["always", "everysec"],
        Meta(
            description="When a reward is acknowledged: `always` after the disk has it, `everysec` after the "
            "system has it, which a power cut can lose up to about a second of."
        ),
    ] = "always"
    keep_journal: Annotated[
        bool,
        Meta(
            description="Never delete journal segments; the journal is also the log to evaluate policies on. "
            "Off: segments older than the older snapshot go."
        ),
    ] = True
    segment_bytes: Annotated[
        int,
        Meta(
            description="A new journal segment begins after this many bytes.",
            ge=4096,
            le=2**32,
            extra={"unit": "bytes"},
        ),
    ] = 64 * 2**20
    segment_age: Annotated[
        float,
        Meta(
            description="A new journal segment begins after this time.",
            gt=0,
            extra={"unit": "seconds", "parse": "duration"},
        ),
    ] = 3600.0
    snapshot_every: Annotated[
        float,
        Meta(
            description="A snapshot is taken after this time, if anything happened.",
            ge=0.1,
            extra={"unit": "seconds", "parse": "duration"},
        ),
    ] = 60.0
    snapshot_rewards: Annotated[
        int,
        Meta(description="A snapshot is taken after this many rewards.", ge=1, extra={"unit": "rewards"}),
    ] = 50_000
    relearn: Annotated[
        bool,
        Meta(
            description="The policy or another setting that the learned state depends on has changed: fold "
            "the whole journal again under the new one. Needs the journal from its beginning."
        ),
    ] = False


OPTIONS = {"policy_options": "--option", "recommender_options": "--recommender-option"}  # one at a time
VERSION = "the version of "
INNER = {  # what the state calls a setting -> its name, where that is another one
    "options": "policy_options",
    "half_life": "user_half_life",
    "wait": "reward_wait",
    "default": "default_reward",
    "max_open": "max_pending",
    "max_open_bytes": "max_pending_bytes",
    "max_done": "max_settled",
    "aggregation": "reward_aggregation",
}


class Row(NamedTuple):
    """One setting, for a table or a command line."""

    name: str
    kind: str  # text, integer, number, duration, yes or no, options, or the choices
    default: Any
    unit: str
    help: str

    @property
    def shown(self) -> str:
        """The default as people read it; empty where there is none."""
        if isinstance(self.default, bool):
            return "yes" if self.default else "no"
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default or "")


def flag(name: str) -> str:
    """What a setting is called on the command line.

    >>> flag("reward_wait"), flag("policy_options"), flag("recommender_options")
    ('--reward-wait', '--option', '--recommender-option')
    """
    return OPTIONS.get(name) or f"--{name.replace('_', '-')}"


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two identities of a state, in the names and values of settings.

    >>> differences({"wait": 600.0, "challengers": ["vw"]}, {"wait": 60.0})
    ['--challengers was vw and is now empty', '--reward-wait was 600 and is now 60']
    """
    usual = {flag(row.name): _text(row.default) for row in rows()}
    usual["--silence"] = "wait"  # of those that do not say
    old, new = _by_flag(was), _by_flag(now)
    found = []
    for name in sorted(old.keys() | new.keys()):
        if name not in usual and name.startswith(VERSION) and not (name in old and name in new):
            continue  # another policy, which is named itself
        if name == "--floor" and not (name in old and name in new):
            continue  # a part of it only where there are challengers, which are named themselves
        before, after = (each.get(name, usual.get(name)) or "empty" for each in (old, new))
        if before != after:
            found.append(f"{name} was {before} and is now {after}")
    return found


def _by_flag(identity: Mapping[str, Any]) -> dict[str, str]:
    known = {row.name for row in rows()}
    found = {f"{VERSION}{name}": each for name, each in identity.get("libraries", {}).items()}
    for inner in identity.keys() - {"libraries", "recommend_from"}:
        name, unnamed = INNER.get(inner, inner), inner == "recommender" and "recommend_from" not in identity
        found[flag(name) if name in known else name] = "" if unnamed else _text(identity[inner])
    return found


def _text(value: Any) -> str:
    """A value as it is given on the command line."""
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return repr(value).removesuffix(".0")
        case list() | tuple():
            return " ".join(map(_text, value))
        case dict():
            return " ".join(f"{name}={_text(each)}" for name, each in value.items())
    return str(value)


def rows() -> Iterator[Row]:
    """Every setting, in the order in which they are declared."""
    hints = get_type_hints(Settings, include_extras=True)
    for field in msgspec.structs.fields(Settings):
        kind, meta = get_args(hints[field.name])[:2]
        extra = meta.extra or {}
        word = {str: "text", int: "integer", float: "number", bool: "yes or no"}.get(kind, "options")
        if get_origin(kind) is Literal:
            word = " or ".join(filter(None, get_args(kind)))
        default = {} if field.default is msgspec.NODEFAULT else field.default
        yield Row(field.name, extra.get("parse", word), default, extra.get("unit", ""), str(meta.description))


def page() -> str:
    """Every setting as a page of the documentation."""
    lines = [
        "# Settings",
        "",
        "Each is a flag of `banditads serve` (`--reward-wait 10m`), an environment variable",
        '(`BANDITADS_REWARD_WAIT`) and a key of the TOML file given with `--config` (`reward_wait = "10m"`).',
        "A flag beats the environment, which beats the file, which beats the default. Durations are seconds,",
        "or take a unit: `250ms`, `30s`, `10m`, `24h`, `7d`. On the command line `policy_options` is",
        "`--option NAME=VALUE` and `recommender_options` is `--recommender-option NAME=VALUE`.",
        "This page is made from the program.",
        "",
        "| name | type | default | unit | |",
        "|---|---|---|---|---|",
    ]
    for row in rows():
        lines.append(f"| `{row.name}` | {row.kind} | {row.shown} | {row.unit} | {row.help} |")
    return "\n".join(lines) + "\n"


def load(
    file: str = "", environ: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
) -> Settings:
    """The settings in force. Raises `Misconfigured`, naming the setting and where it was given."""
    known = {row.name: row for row in rows()}
    values: dict[str, Any] = {}
    for source, given, typed in (
        (file, _toml(file) if file else {}, True),
        ("the environment", _environment(environ or {}), False),
        ("the command line", dict(flags or {}), False),
    ):
        for name, value in given.items():
            if name not in known:
                raise Misconfigured(_unknown(name, name, list(known), source))
            values[name] = _convert(known[name], value, source, typed)
    settings = Settings(**values)
    _check(settings)
    return settings


def _convert(row: Row, value: Any, source: str, typed: bool) -> Any:
    """One value as the setting's own type, which text is turned into unless the source has `typed` values."""
    hint = get_type_hints(Settings, include_extras=True)[row.name]
    try:
        if row.kind == "duration" and isinstance(value, str):
            value = duration(value)
        if row.kind == "yes or no" and isinstance(value, str) and not typed:
            value = {"yes": True, "on": True, "no": False, "off": False}.get(value.lower(), value)
        if row.kind == "options" and isinstance(value, str) and not typed:
            value = options(value.split())
        return msgspec.convert(value, hint, strict=typed)
    except (msgspec.ValidationError, ValueError) as error:
        raise Misconfigured(
            f"setting {row.name} from {source} cannot be {value!r}: it is of type {row.kind}; {error}"
        ) from None


def options(pairs: list[str] | tuple[str, ...]) -> dict[str, bool | int | float | str | list[str]]:
    """`name=value` pairs, values read as TOML where they can be.

    >>> options(["epsilon=0.2", "exploration=squarecb", "interactions=['UA']"])
    {'epsilon': 0.2, 'exploration': 'squarecb', 'interactions': ['UA']}
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"{pair!r} is not name=value")
        if name in found:
            raise ValueError(f"{name} is given twice")
        try:
            found[name] = tomllib.loads(f"value = {text}" if text.isprintable() else "")["value"]
        except KeyError:
            found[name] = text
        except tomllib.TOMLDecodeError:
            found[name] = text
    return found


def _check(settings: Settings) -> None:
    """What no single setting can know."""
    if not settings.reward_min < settings.reward_max:
        raise Misconfigured("setting reward_min must be below reward_max")
    if settings.max_scored < 500 and not settings.recommender:
        raise Misconfigured("setting max_scored must not be below 500 where no recommender is named")
    if settings.proposals > settings.max_scored:
        raise Misconfigured("setting proposals must not be above max_scored")
    if not _is_text(settings.salt) or len(settings.salt.encode()) > 64:
        raise Misconfigured("setting salt may have at most 64 bytes of UTF-8")
    if not settings.reward_min <= settings.default_reward <= settings.reward_max:
        raise Misconfigured("setting default_reward must lie between reward_min and reward_max")
    for word in settings.challengers.split():
        if any("=" not in each.partition(":")[0] for each in word.split(",")[1:]):
            names = settings.challengers.replace(",", " ").split()
            raise Misconfigured(
                f"setting challengers: they are separated by spaces, not by commas, as in {' '.join(names)!r}"
            )
    for name in ("click_reward", "conversion_reward", "dwell_reward"):
        try:
            worth.parse(getattr(settings, name))
        except ValueError as error:
            raise Misconfigured(f"setting {name}: {error}") from None
    try:
        origins(settings.cors_origins)
    except Invalid as error:
        raise Misconfigured(f"setting cors_origins: {error.message}") from None


def _is_text(value: str) -> bool:
    """Whether it can be written in UTF-8: what the environment holds need not be text."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _toml(file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(file).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Misconfigured(f"the configuration file {file} cannot be read: {error}") from None


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    known = [row.name for row in rows()]
    found = {}
    for variable, text in environ.items():
        if variable.startswith(PREFIX):
            name = variable.removeprefix(PREFIX).lower()
            if name == "config":  # names the TOML file; not a setting itself
                continue
            if name not in known or variable != PREFIX + name.upper():
                candidates = [PREFIX + each.upper() for each in known]
                raise Misconfigured(_unknown(variable, variable, candidates, "the environment"))
            found[name] = text
    return found


def _unknown(name: str, shown: str, known: list[str], source: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"{shown} in {source} is not a setting" + (f"; did you mean {near[0]}?" if near else "")
