"""The part that every one of these services has: VW by its text format, as its tutorials show it.

A choice is remembered until its reward comes, and both are a line of a log file. With `cached`, the lines of
the ads are made once; a tutorial makes them at every request.
"""

from __future__ import annotations

import json
import random
import uuid
from pathlib import Path

from vowpalwabbit import Workspace

VW = "--cb_explore_adf --cb_type mtr --epsilon 0.1 -b 18 -q UA --quiet"


def features(given: dict[str, str | float]) -> str:
    """Features in VW's format."""
    return " ".join(
        f"{name}={value}" if isinstance(value, str) else f"{name}:{value}" for name, value in given.items()
    )


class Bandit:
    """Epsilon-greedy over the ads of a catalog. Not for several threads at once."""

    def __init__(self, catalog: str, folder: str, cached: bool = False) -> None:
        self.ads = [json.loads(line) for line in Path(catalog).read_text().splitlines()]
        self.vw = Workspace(VW)
        self.waiting: dict[str, tuple[dict, int, float]] = {}  # event id -> context, pick, probability
        self.log = open(Path(folder, "log.jsonl"), "a", buffering=1)  # noqa: SIM115
        self.lines = self.ad_lines() if cached else None

    def choose(self, context: dict[str, str | float]) -> tuple[str, str, float]:
        """(event id, ad, probability)."""
        pmf = self.vw.predict("\n".join([f"shared |U {features(context)}", *(self.lines or self.ad_lines())]))
        pick = random.choices(range(len(pmf)), pmf)[0]
        event_id, ad, probability = uuid.uuid4().hex, self.ads[pick]["id"], pmf[pick] / sum(pmf)
        self.waiting[event_id] = context, pick, probability
        self.write({"event_id": event_id, "context": context, "ad": ad, "probability": probability})
        return event_id, ad, probability

    def reward(self, event_id: str, reward: float) -> bool:
        """Learn. Whether there was such a choice."""
        if event_id not in self.waiting:
            return False
        context, pick, probability = self.waiting.pop(event_id)
        lines = list(self.lines or self.ad_lines())
        lines[pick] = f"0:{-reward}:{probability} {lines[pick]}"
        self.vw.learn("\n".join([f"shared |U {features(context)}", *lines]))
        self.write({"event_id": event_id, "reward": reward})
        return True

    def ad_lines(self) -> list[str]:
        """Every ad in VW's format."""
        return [f"|A id={ad['id']} {features(ad['features'])}" for ad in self.ads]

    def write(self, event: dict) -> None:
        """A line of the log."""
        self.log.write(json.dumps(event) + "\n")
