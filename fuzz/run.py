"""Fuzzes one target, or all of them one after the other; see README.md beside this file.

What reaches new code is kept in `corpus/<target>/`, smallest inputs first; an input that breaks a promise is
kept there too, as `crash-...`, and is told.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["banditads"]):
    import targets

CORPUS = Path(__file__).parent / "corpus"
EACH = int(os.environ.get("SECONDS_EACH", "60"))
LIMITS = ("-max_len=4096", "-timeout=20", "-rss_limit_mb=3000")
KEPT = 24_000  # bytes of a target's corpus; beyond, nothing is added


def one(name: str, *options: str) -> None:
    """Fuzz in this process, which libFuzzer ends."""
    atheris.Setup([sys.argv[0], *options], targets.TARGETS[name])
    atheris.Fuzz()


def tour(names: list[str]) -> int:
    """Fuzz each in a process of its own; return the number of those that broke a promise."""
    broken = 0
    for name in names:
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as work:
            done = _run(name, f"-max_total_time={EACH}", f"-artifact_prefix={folder}/", work, str(folder))
            said = done.stderr.splitlines()
            print(name, *(line for line in said if "DONE" in line), flush=True)
            if done.returncode:
                broken += 1
                print(*said[-60:], sep="\n", flush=True)
            else:
                _keep(folder, Path(work))
    return broken


def _run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, __file__, name, *LIMITS, *options]
    return subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")


def _keep(folder: Path, work: Path) -> None:
    """Add the smallest of what reached new code, as far as there is room."""
    size = sum(each.stat().st_size for each in folder.iterdir())
    for new in sorted(work.iterdir(), key=lambda each: each.stat().st_size):
        size += new.stat().st_size
        if size <= KEPT:
            (folder / new.name).write_bytes(new.read_bytes())


if __name__ == "__main__":
    if sys.argv[1] in targets.TARGETS:
        one(sys.argv[1], *sys.argv[2:])
    else:
        sys.exit(tour(sorted(targets.TARGETS)))
