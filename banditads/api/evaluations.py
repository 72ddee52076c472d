"""Evaluations in the background: what other policies would have earned on this server's own journal."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .. import policies
from ..errors import Invalid
from ..evaluation import Report
from ..jobs import MAX_POLICIES, MAX_SPEC, Job, Jobs, Question
from ..parsing import PRINTABLE
from ..selecting import Selection

SPEC = rf"^({'|'.join(policies.names())})(:[a-z_]+=[!-+\--~]+(,[a-z_]+=[!-+\--~]+)*)?$"
Spec = Annotated[str, Meta(extra_json_schema={"maxLength": MAX_SPEC, "pattern": SPEC})]
Moment = Annotated[float, Meta(ge=0)]
Offset = Annotated[int, Meta(ge=0, le=2**53)]


class EvaluationBody(msgspec.Struct, forbid_unknown_fields=True):
    """What to evaluate: policies, as `name` or `name:option=value,option=value`, on a window of the journal.

    `since` and `until` are of decisions, in seconds since the epoch, `first_offset` and `end_offset` their
    places in the journal; ends are not in the window. `by` is a feature of the context, `placement` or `ad`.
    With `warm` policies have learned what came before the window.
    """

    policies: Annotated[
        list[Spec], Meta(extra_json_schema={"minItems": 1, "maxItems": MAX_POLICIES})
    ]  # refused in a sentence
    since: Moment | None = None
    until: Moment | None = None
    first_offset: Offset | None = None
    end_offset: Offset | None = None
    by: Annotated[str, Meta(extra_json_schema={"maxLength": 128, "pattern": PRINTABLE})] = ""
    warm: bool = False
    seed: Annotated[int, Meta(ge=0, le=2**31)] = 0


class Evaluation(msgspec.Struct):
    """How far an evaluation is; times in seconds since the epoch.

    `status` is waiting, running, done or failed, for the reason in `error`. `rounds` are read of about `of`.
    """

    id: str
    status: str
    rounds: int
    of: int
    asked_at: float
    ended_at: float | None
    error: str
    policies: tuple[str, ...]
    since: float | None
    until: float | None
    first_offset: int | None
    end_offset: int | None
    by: str
    warm: bool
    seed: int


class EvaluationReply(Evaluation, kw_only=True):
    """The same; and the report, as `banditads evaluate --json` gives it for one log, once it is done."""

    report: Report | None


class EvaluationsReply(msgspec.Struct):
    """All that are waiting, running or kept, newest first."""

    evaluations: list[Evaluation]


def mount(routes, engine) -> None:  # noqa: D103
    jobs: Jobs | None = None
    if engine.snapshots is not None:
        state = engine.state
        arguments = (f"--reward-min={state.reward_min!r}", f"--reward-max={state.reward_max!r}")
        jobs = Jobs(engine.snapshots.folder, arguments)

    def there() -> Jobs:
        if jobs is None:
            raise Invalid("this server keeps nothing on a disk")
        return jobs

    @routes.add(
        "POST",
        "/evaluations",
        scope="admin",
        body=EvaluationBody,
        reply=Evaluation,
        statuses={429: "Enough evaluations are waiting; Retry-After says when to ask again."},
    )
    def ask(call):
        """Evaluate policies on this server's journal, in the background; its id is there to be asked."""
        body = call.body
        window = {name: getattr(body, name) for name in Selection.__struct_fields__}
        total = engine.state.stats.total
        question = Question(tuple(body.policies), Selection(**window), body.seed)
        return Evaluation(**_said(there().ask(question, total.rewards + total.expired)))

    @routes.add("GET", "/evaluations", scope="admin", reply=EvaluationsReply, compress=True)
    def evaluations(call):
        """Evaluations that are waiting, running or kept, newest first, without reports."""
        return EvaluationsReply([Evaluation(**_said(job)) for job in jobs.all()] if jobs else [])

    @routes.add(
        "GET",
        "/evaluations/{id}",
        scope="admin",
        reply=EvaluationReply,
        statuses={404: "No such evaluation."},
        compress=True,
    )
    def evaluation(call):
        """How far an evaluation is, and its report when it is done."""
        job = there().get(call.id)
        return EvaluationReply(**_said(job), report=msgspec.json.decode(job.report, type=Report | None))

    @routes.add(
        "DELETE",
        "/evaluations/{id}",
        scope="admin",
        reply=Evaluation,
        statuses={404: "No such evaluation."},
    )
    def drop(call):
        """Stop an evaluation, if it is not over, and forget it; as it was."""
        return Evaluation(**_said(there().drop(call.id)))


def _said(job: Job) -> dict[str, Any]:
    question, window = job.question, msgspec.structs.asdict(job.question.selection)
    names = ("id", "status", "rounds", "of", "asked_at", "ended_at", "error")
    said = {name: getattr(job, name) for name in names}
    return {**said, "policies": question.policies, **window, "seed": question.seed}
