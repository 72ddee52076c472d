"""GET /diagnostics: what is going on, in words, and what to do about it."""

from __future__ import annotations

import msgspec

from ..diagnosis import View, findings


class DiagnosisReply(msgspec.Struct):
    """What is going on; `since` is in seconds since the epoch, null where that cannot be told."""

    code: str
    message: str
    advice: str
    since: float | None = None


class DiagnosticsReply(msgspec.Struct):
    """Alarms, as /readyz has them, then what else there is to say; empty when all is as it should be."""

    diagnoses: list[DiagnosisReply]


def mount(routes, engine) -> None:  # noqa: D103
    @routes.add("GET", "/diagnostics", scope="admin", reply=DiagnosticsReply)
    def diagnostics(call):
        """What is going on, in words: what is seen, since when, and what to do about it."""
        with engine.lock:
            view = View.of(engine.state)
        found = [DiagnosisReply(*alarm) for alarm in engine.alarms()]
        return DiagnosticsReply(found + [DiagnosisReply(*each) for each in findings(view)])
