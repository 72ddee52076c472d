"""Policies: ways to spread probability over ads, and to learn.

The file name is the name: `policies/linucb.py` holds `Policy`, and `"linucb"` loads it. A policy never
throws dice. It returns a distribution; `choosing.py` mixes in the floor, draws from that and logs it, so a
logged propensity cannot be wrong.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import Misconfigured
from ..events import Ad, Chosen, Features, Saved

Floats: TypeAlias = NDArray[np.float64]


class Policy(Protocol):
    """What every file in this package promises, whatever its options.

    One with an attribute `waiting` is given a mapping there: ad id -> choices of it that wait for their
    reward. It is read in `pmf` only and is no part of what was learned: whoever counts them keeps it true.
    One with an attribute `sound` says there whether all that its last step touched is finite; any other is
    asked for a distribution after each step.
    One with a method `correct` is told what a choice earned of which it had learned something else `before`;
    any other learns that besides. See `teach`.
    """

    def pmf(self, context: Features, ads: Sequence[Ad]) -> Floats:
        """Probability of showing each ad, shape (n_ads,), sums to 1, for any n_ads >= 1. Changes nothing.

        Ads never seen before are fine. The same state and arguments give the same bits.
        """

    def learn(
        self, context: Features, ads: Sequence[Ad], pick: int, reward: float, propensity: float
    ) -> None:
        """`ads[pick]` was shown, with `propensity` in (0, 1], and earned `reward` in [0, 1]."""

    def expected(self, context: Features, ads: Sequence[Ad], pick: int) -> float | None:
        """What `ads[pick]` will earn, in [0, 1], by all that was learned; None from who has no idea.

        Changes nothing. Cheap right after `pmf` with the very same arguments.
        """

    def dump(self) -> Saved:
        """Everything learned, as msgpack-able data; equal states dump equally."""

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`: from here on this policy is bit for bit the one that was dumped."""

    def describe(self) -> dict[str, Any]:
        """A few JSON-able facts for people: options, sizes, how much was learned."""


def names() -> list[str]:
    """All policies there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


class Option(NamedTuple):
    """An option of a policy."""

    name: str
    default: Any
    help: str


def options(name: str) -> list[Option]:
    """The options of a policy, as its class documents them."""
    return documented(importlib.import_module(f"{__name__}.{name}").Policy)


def documented(made: type, also: Sequence[type] = ()) -> list[Option]:
    """The options of a class and of those it is built on, first of these.

    What it does not document itself is documented by one of them, or by one of `also`.
    """
    help: dict[str, str] = {}
    defaults: dict[str, Any] = {}
    classes = [each for each in reversed(made.__mro__) if "__init__" in vars(each) and each is not object]
    for each in (*also, *classes):
        section = (inspect.getdoc(each) or "").partition("Parameters\n----------\n")[2].partition("\n>>>")[0]
        for names, text in re.findall(r"^(\w[\w, ]*)\n((?:    .+\n?)+)", section, re.M):
            help |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    for each in classes:
        parameters = inspect.signature(each).parameters.values()
        defaults |= {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}
    return [Option(name, default, help[name]) for name, default in defaults.items()]


def libraries(name: str) -> dict[str, str]:
    """Versions of the libraries that compute what this policy learns: another one may give other bits."""
    module = importlib.import_module(f"{__name__}.{name}")
    return {library: version(library) for library in getattr(module, "LIBRARIES", ())}


def check_ranges(*ranges: tuple[str, float, float, float]) -> None:
    """Each is (option, value, low, high); whole numbers between whole bounds. Raises `Misconfigured`."""
    for option, value, low, high in ranges:
        whole = isinstance(low, int)
        if not isinstance(value, int if whole else int | float) or not low <= value <= high:
            kind = f"an integer in [{low}, {high}]" if whole else f"in [{low:g}, {high:g}]"
            raise Misconfigured(f"option {option} must be {kind}, not {value!r}")


def make(name: str, **options: Any) -> Policy:
    """A policy that has learned nothing yet.

    >>> make("uniform", speed=9)
    Traceback (most recent call last):
    banditads.errors.Misconfigured: policy 'uniform' has no option 'speed'; it has: none
    """
    if name not in names():
        raise Misconfigured(f"there is no policy {name!r}; there are: {', '.join(names())}")
    made = importlib.import_module(f"{__name__}.{name}").Policy
    policy: Policy = made(**checked(f"policy {name!r}", documented(made), options))
    return policy


def checked(whose: str, known: Sequence[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the type that their defaults have. Raises `Misconfigured` for one that is not known."""
    defaults, found = {each.name: each.default for each in known}, dict(given)
    for option, value in given.items():
        if option not in defaults:
            raise Misconfigured(f"{whose} has no option {option!r}; it has: {', '.join(defaults) or 'none'}")
        if isinstance(value, bool) and not isinstance(defaults[option], bool):
            raise Misconfigured(f"option {option} of {whose} is no yes or no")
        if isinstance(defaults[option], float) and isinstance(value, int):
            found[option] = float(value)  # 1 is 1.0: both make the same
    return found


def teach(
    policy: Policy, choice: Chosen, ads: Sequence[Ad], reward: float, before: float | None = None
) -> None:
    """Let a policy learn what a choice earned, `before` which it had learned that this was something else."""
    if before is not None and hasattr(policy, "correct"):
        policy.correct(
            choice.context,
            ads,
            choice.pick,
            reward=reward,
            propensity=choice.probability,
            before=before,
        )
    else:
        policy.learn(choice.context, ads, choice.pick, reward, choice.probability)


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """A policy's name and options.

    >>> parse("vw:epsilon=0.05,exploration=squarecb,interactions=false")
    ('vw', {'epsilon': 0.05, 'exploration': 'squarecb', 'interactions': False})
    """
    name, _, rest = spec.partition(":")
    options: dict[str, Any] = {}
    for item in rest.split(",") if rest else ():
        option, equals, value = (part.strip() for part in item.partition("="))
        if not option or not equals or option in options:
            raise Misconfigured(f"policy {spec!r}: wanted name:option=value,option=value, not {item!r}")
        options[option] = _value(value)
    return name.strip(), options


def from_spec(spec: str) -> Policy:
    """A policy that has learned nothing yet, as `parse` reads it."""
    name, options = parse(spec)
    return make(name, **options)


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
