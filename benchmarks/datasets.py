"""Data sets from package registries, as games: a visitor's features, and which one of some ads is right.

A classification set becomes a bandit's problem: the features of a row are the context, the classes are the
ads, and showing the row's class earns 1, any other ad 0; what another ad would have earned is not told.
Features have the names of their columns. Ordered and binary factors are numbers, other factors words, and
what is missing is left out, as a site would.

Nothing is kept in this repository. scikit-learn and River bring their sets in their wheels; those of the R
package mlbench come from Debian's `r-cran-mlbench` by `apt-get download`, are read with `rdata` and kept in
the user's cache (`XDG_CACHE_HOME`). On a machine without apt, put the package's `.rda` files there.

Policies are tuned on `TUNING` only; `HELD_OUT` is for reporting.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from river import datasets

from banditads.events import Ad, Features
from banditads.features import clean

DEBIAN = "r-cran-mlbench"


class Table(NamedTuple):
    """A classification set."""

    rows: Sequence[Features]
    right: NDArray[np.int64]  # (n_rows,), which of `ads`
    ads: tuple[Ad, ...]  # without features


def load(name: str) -> Table:
    """One of `SETS`, in its own order; ImportError, OSError or CalledProcessError without its source."""
    return SETS[name]()


def rounds(table: Table, seed: int, n: int) -> NDArray[np.int64]:
    """Which rows come, shape (at most n,): no row twice, in an order drawn from the seed."""
    return np.random.default_rng(seed).permutation(len(table.rows))[:n]


def _table(rows: Iterable[dict[str, Any]], classes: Iterable[Any]) -> Table:
    """Classes become ads in the order of their names; rows without one are left out."""
    known = [(row, str(each)) for row, each in zip(rows, classes, strict=True) if each is not None]
    names = sorted({each for _, each in known})
    place = {each: at for at, each in enumerate(names)}
    return Table(
        [clean(row) for row, _ in known],
        np.array([place[each] for _, each in known]),
        tuple(Ad(f"class-{at:02}") for at in range(len(names))),
    )


def _sklearn(name: str) -> Table:
    found = getattr(import_module("sklearn.datasets"), f"load_{name}")()
    columns = [str(each).replace(" ", "_") for each in found.feature_names]
    rows = (dict(zip(columns, row, strict=True)) for row in found.data.tolist())
    return _table(rows, found.target.tolist())


def _river(name: str) -> Table:
    rows, classes = zip(*getattr(datasets, name)(), strict=True)
    return _table(({str(key): value for key, value in row.items()} for row in rows), classes)


def _mlbench(name: str, target: str) -> Table:
    pandas, rdata = import_module("pandas"), import_module("rdata")
    (frame,) = rdata.read_rda(_rda(name), default_encoding="latin-1").values()
    columns = {}
    for column in frame.columns:
        values = frame[column]
        if isinstance(values.dtype, pandas.CategoricalDtype):
            levels, plain = values.cat.categories, values.astype(object)
            ordered = values.cat.ordered or len(levels) == 2
            number = {level: float(at) for at, level in enumerate(levels)}
            as_it_is = str if column == target or not ordered else number.__getitem__
            columns[column] = [None if pandas.isna(each) else as_it_is(each) for each in plain]
        else:
            columns[column] = [None if pandas.isna(each) else float(each) for each in values]
    classes = columns.pop(target)
    kept = [
        {key: value for key, value in zip(columns, row, strict=True) if value is not None}
        for row in zip(*columns.values(), strict=True)
    ]
    return _table(kept, classes)


def _rda(name: str) -> Path:
    """A file of the R package, fetched once."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "banditads", "mlbench")
    if not (home / f"{name}.rda").exists():
        home.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as folder:
            subprocess.run(
                ["apt-get", "-qq", "download", DEBIAN], check=True, cwd=folder, capture_output=True
            )
            (package,) = Path(folder).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", str(package), folder], check=True)
            for file in Path(folder).rglob("*.rda"):
                unfinished = home / f"{file.name}.{os.getpid()}"
                unfinished.write_bytes(file.read_bytes())
                unfinished.rename(home / file.name)
    return home / f"{name}.rda"


# What each one is made from: classes, rows.
TUNING: dict[str, Callable[[], Table]] = {
    "digits": partial(_sklearn, "digits"),  # 10, 1,797
    "phishing": partial(_river, "Phishing"),  # 2, 1,250
    "bananas": partial(_river, "Bananas"),  # 2, 5,300
    "imagesegments": partial(_river, "ImageSegments"),  # 7, 2,310
    "vehicle": partial(_mlbench, "Vehicle", "Class"),  # 4, 846
    "breast_cancer": partial(_sklearn, "breast_cancer"),  # 2, 569
}
HELD_OUT: dict[str, Callable[[], Table]] = {
    "letter": partial(_mlbench, "LetterRecognition", "lettr"),  # 26, 20,000
    "shuttle": partial(_mlbench, "Shuttle", "Class"),  # 7, 58,000
    "satellite": partial(_mlbench, "Satellite", "classes"),  # 6, 6,435
    "vowel": partial(_mlbench, "Vowel", "Class"),  # 11, 990
    "dna": partial(_mlbench, "DNA", "Class"),  # 3, 3,186
    "soybean": partial(_mlbench, "Soybean", "Class"),  # 19, 683
    "diabetes": partial(_mlbench, "PimaIndiansDiabetes", "diabetes"),  # 2, 768
}
SETS = TUNING | HELD_OUT
