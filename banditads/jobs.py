"""Evaluations that a server was asked for: one at a time, in the background, with results that stay.

Each is `banditads evaluate` in a process of its own, on a processor that serving does not use and behind
everything else, reading the journal while the server writes it. It ends with the server, or when nobody wants
it any more. What was asked for, and what came of it, are files in the data directory; an evaluation that
a stop of the server cut short begins anew with the next start. Numbers depend on the journal and the
question only, so that changes nothing but the time it takes.
"""

from __future__ import annotations

import logging
import os
import secrets
import subprocess  # nosec B404 # starts this very program, see `_command`
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from . import policies
from .directory import fsync_folder, make_folder, write_durably
from .errors import DiskFailure, Invalid, Misconfigured, TooMany, Unavailable, Unknown
from .evaluation import EVERYTHING
from .forking import others
from .selecting import Selection

log = logging.getLogger(__name__)

MAX_POLICIES = 10  # of one evaluation
MAX_SPEC = 256  # characters
MAX_WAITING = 10
MAX_KEPT = 100  # evaluations; the oldest that is over goes
MAX_LINE = 16 * 2**20  # bytes; ten policies and twenty segments are half a million
SECONDS = 86_400.0  # that one may take
REFUSED = 78  # exit code of what was asked for and cannot be; the sentence is for whoever asked


class Question(msgspec.Struct, frozen=True):
    """What is to be evaluated."""

    policies: tuple[str, ...]
    selection: Selection = EVERYTHING
    seed: int = 0


class Job(msgspec.Struct):
    """An evaluation. Times are in seconds since the epoch."""

    id: str
    question: Question
    asked_at: float
    status: Literal["waiting", "running", "done", "failed"] = "waiting"
    rounds: int = 0  # read so far
    of: int = 0  # that there were when it was asked for
    ended_at: float | None = None
    error: str = ""  # why it failed
    report: msgspec.Raw = msgspec.Raw(b"null")  # only in the file


class Jobs:
    """The evaluations of one data directory; `arguments` are what the command needs besides the question."""

    def __init__(
        self, folder: Path, arguments: tuple[str, ...] = (), clock: Callable[[], float] = time.time
    ) -> None:
        self.folder, self.kept = folder.absolute(), folder.absolute() / "evaluations"
        self.arguments, self.clock = arguments, clock
        self._jobs: dict[str, Job] = {}  # oldest first
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None  # of the one that is running
        self._runner = threading.Thread()
        self._load()

    def ask(self, question: Question, of: int) -> Job:
        """Begin an evaluation, or let it wait. Raises `Invalid`, `TooMany`, and `Unavailable`."""
        check(question)
        with self._lock:
            if sum(job.status == "waiting" for job in self._jobs.values()) >= MAX_WAITING:
                raise TooMany(f"{MAX_WAITING} evaluations are waiting already", retry_after=60)
            job = Job(secrets.token_hex(8), question, self.clock(), of=of)
            try:
                make_folder(self.kept)
            except (OSError, DiskFailure) as error:
                raise Unavailable(f"the evaluation cannot be written down: {error}") from None
            self._write(job)
            self._jobs[job.id] = job
            over = [each.id for each in self._jobs.values() if each.status in ("done", "failed")]
            for id in over[: max(0, len(self._jobs) - MAX_KEPT)]:
                self._drop(id)
            self._start()
            return msgspec.structs.replace(job)

    def all(self) -> list[Job]:
        """Every evaluation there is, newest first, without reports."""
        with self._lock:
            return [msgspec.structs.replace(job) for job in reversed(self._jobs.values())]

    def get(self, id: str) -> Job:
        """One evaluation; with its report, if it is done. Raises `Unknown`."""
        with self._lock:
            job = msgspec.structs.replace(self._known(id))
        if job.status == "done":
            try:
                return msgspec.json.decode(self._path(id).read_bytes(), type=Job)
            except (OSError, msgspec.DecodeError):
                raise Unknown("the result of this evaluation is no longer there", "id") from None
        return job

    def drop(self, id: str) -> Job:
        """End an evaluation if it is running, and forget it. Raises `Unknown`."""
        with self._lock:
            job = self._known(id)
            self._drop(id)
            if job.status == "running" and self._process:
                self._process.kill()
            return msgspec.structs.replace(job)

    def _known(self, id: str) -> Job:
        if id not in self._jobs:
            raise Unknown("there is no such evaluation", "id")
        return self._jobs[id]

    def _drop(self, id: str) -> None:
        try:
            self._path(id).unlink(missing_ok=True)
            fsync_folder(self.kept)
        except (OSError, DiskFailure) as error:
            raise Unavailable(f"the evaluation cannot be deleted: {error}") from None
        del self._jobs[id]

    def _path(self, id: str) -> Path:
        return self.kept / f"{id}.json"

    def _write(self, job: Job) -> None:
        try:
            write_durably(self._path(job.id), msgspec.json.encode(job), mode=0o600)
        except (OSError, DiskFailure) as error:
            raise Unavailable(f"the evaluation cannot be written down: {error}") from None

    def _load(self) -> None:
        """What was there before; whatever was not over waits again."""
        found = []
        for path in self.kept.glob("*.json"):
            try:
                job = msgspec.json.decode(path.read_bytes(), type=Job)
                if path != self._path(job.id):
                    raise ValueError("it has another name")
                check(job.question)
            except (OSError, ValueError, Invalid) as error:  # nothing depends on it
                log.warning("the evaluation %s cannot be read, and is left alone: %s", path, error)
                continue
            job.report = msgspec.Raw(b"null")
            if job.status == "running":
                job.status, job.rounds = "waiting", 0
            found.append(job)
        for left in self.kept.glob("*.tmp"):
            left.unlink()
        self._jobs = {job.id: job for job in sorted(found, key=lambda job: (job.asked_at, job.id))}
        with self._lock:
            self._start()

    def _start(self) -> None:
        """See to it that what waits is done. The lock is held."""
        waiting = any(job.status == "waiting" for job in self._jobs.values())
        if waiting and not self._runner.is_alive():
            self._runner = threading.Thread(target=self._run, name="evaluations", daemon=True)
            self._runner.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                job = next((each for each in self._jobs.values() if each.status == "waiting"), None)
                if job is None:
                    self._runner = threading.Thread()  # whoever asks from now on starts another one
                    return
                job.status = "running"
            try:
                report, trouble = self._evaluate(job), ""
            except Invalid as error:
                report, trouble = b"null", error.message
            except Exception as error:
                if job.id in self._jobs:  # nobody ended it
                    log.error("the evaluation %s failed: %s", job.id, error)
                report, trouble = b"null", "something went wrong here; it has been logged"
            with self._lock:
                if job.id not in self._jobs:  # nobody wants it any more
                    continue
                over = msgspec.structs.replace(
                    job,
                    status="failed" if trouble else "done",
                    error=trouble,
                    ended_at=self.clock(),
                    report=msgspec.Raw(report),
                )
                try:
                    self._write(over)
                except Unavailable as error:
                    log.error("the result of an evaluation is lost: %s", error)
                    over.status, over.error = "failed", "the disk refused the result"
                over.report = msgspec.Raw(b"null")
                self._jobs[job.id] = over

    def _evaluate(self, job: Job) -> bytes:
        """The report, as JSON. Raises `Invalid` with the command's own words, if it refuses."""
        last = b""
        with subprocess.Popen(  # nosec B603 # no shell; each word is an option's value, never an option
            self._command(job.question),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[1],  # where `-m` finds this very program
        ) as process:
            with self._lock:
                self._process = process
                if job.id not in self._jobs:
                    process.kill()
            with suppress(OSError):  # over already, or not allowed: then it shares a processor with us
                os.sched_setaffinity(process.pid, others())
            with suppress(OSError):
                os.sched_setscheduler(process.pid, os.SCHED_BATCH, os.sched_param(0))
            timer = threading.Timer(SECONDS, process.kill)
            timer.daemon = True
            timer.start()
            try:
                assert process.stdout is not None
                while line := process.stdout.readline(MAX_LINE):
                    if line.strip().isdigit():
                        job.rounds = int(line)
                    elif line.strip():
                        last = line.strip()
            finally:
                timer.cancel()
                process.kill()
                with self._lock:
                    self._process = None
        if process.returncode == 0 and last.startswith(b"[{"):
            job.rounds = max(job.rounds, job.of)
            report: bytes = msgspec.json.decode(last, type=list[msgspec.Raw])[0]
            return bytes(report)
        words = last.decode("utf-8", "replace")
        if process.returncode == REFUSED:
            raise Invalid(words.removeprefix("banditads: "))
        raise RuntimeError(f"exit code {process.returncode}: {words[:1000]}")

    def _command(self, question: Question) -> list[str]:
        found = [sys.executable, "-m", "banditads", "evaluate", f"--parent={os.getpid()}", *self.arguments]
        found += [f"--policy={spec}" for spec in question.policies] + [f"--seed={question.seed}"]
        for name, value in msgspec.structs.asdict(question.selection).items():
            if name == "warm":
                found += ["--warm"] if value else []
            elif value is not None and value != "":
                found.append(f"--{name.replace('_', '-')}={value}")
        return [*found, "--", str(self.folder)]


def check(question: Question) -> Question:
    """The same, if it can be answered as far as one can see without trying. Raises `Invalid`."""
    if not 1 <= len(question.policies) <= MAX_POLICIES:
        raise Invalid(f"must be 1 to {MAX_POLICIES} policies", "policies")
    for number, spec in enumerate(question.policies):
        field = f"policies.{number}"
        if len(spec) > MAX_SPEC or not spec.isprintable():
            raise Invalid(f"may have at most {MAX_SPEC} printable characters", field)
        try:
            name, options = policies.parse(spec)
        except Misconfigured as error:
            raise Invalid(str(error), field) from None
        if name not in policies.names():
            raise Invalid(f"there is no policy {name!r}; there are: {', '.join(policies.names())}", field)
        known = [each.name for each in policies.options(name)]
        if unknown := sorted(options.keys() - set(known)):
            raise Invalid(
                f"policy {name!r} has no option {unknown[0]!r}; it has: {', '.join(known) or 'none'}", field
            )
    question.selection.check()
    return question
