"""What takes long is computed by a copy of this process, of this very moment, while this one goes on.

fork(2) copies page tables only, which stalls the caller for about 9 ms per GB in use; memory is copied
later, page by page, where one of the two writes. The copy has one thread, this one, and first of all lets go
of every file and socket: no lock and no connection may live on in it. It begins on another
processor, where there is one, and goes behind everybody else there. It dies with its parent,
ends without running anything that was meant for its parent's end, and is killed when it takes too long.

>>> Copy(lambda: b"done").result()
b'done'
"""

from __future__ import annotations

import ctypes
import gc
import os
import secrets
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from .errors import Unavailable

SECONDS = 300.0  # that a copy may take
PIPE = 3  # the one file that a copy keeps, besides the three that every process has
NICE = 10  # of a copy: whoever computes for a request goes before it
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)  # Python has no prctl(2)
PROCESSORS = os.sched_getaffinity(0)  # that there are, whichever this process keeps to later


def stay_on_one_processor() -> None:
    """Keep all threads, and those they will make, on one processor; copies use the others.

    With two, a thread that waits for Python's lock is woken on the other one for every request: 64 threads
    took 327 us of both for what takes one 97 (2 virtual processors, 16 connections, 10 ads).
    """
    one = {secrets.choice(sorted(PROCESSORS))}
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError):  # where that is forbidden, it is only slower
            os.sched_setaffinity(int(thread), one)


def others() -> set[int]:
    """The processors that this process does not keep to; all, where it keeps to none or there is no other."""
    return PROCESSORS - os.sched_getaffinity(0) or PROCESSORS


def end_with(parent: int) -> None:
    """Let this process be killed when the thread of its parent that began it ends, or its parent does."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked to be told
        os._exit(1)


def go_first() -> None:
    """When memory runs out, let the system end this process before any other."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


@contextmanager
def _anywhere() -> Iterator[None]:
    """Let a process that is begun here begin on any processor; on ours it would keep us for 2 ms."""
    here = os.sched_getaffinity(0)
    with suppress(OSError):
        os.sched_setaffinity(0, PROCESSORS)
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, here)


class Copy:
    """A copy of this process, at work on `make` from now on. Raises `OSError` where there cannot be one."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._out, into = os.pipe()
        parent, where = os.getpid(), others()
        try:
            with _anywhere():
                self._pid = os.fork()
                if self._pid == 0:
                    _work(make, parent, into, where)
        except OSError:
            os.close(self._out)
            raise
        finally:
            os.close(into)

    def result(self) -> bytes:
        """What `make` gave. Raises `Unavailable` if it failed, died or took too long; the copy is gone."""
        said = bytearray()
        end = time.monotonic() + SECONDS
        poll = select.poll()
        poll.register(self._out)
        try:
            while poll.poll(1000 * max(0.0, end - time.monotonic())):
                if not (part := os.read(self._out, 2**16)):
                    break
                said += part
            else:
                os.kill(self._pid, signal.SIGKILL)
                raise Unavailable(f"the process that was to do it took longer than {SECONDS:g} seconds")
        finally:
            os.close(self._out)
            with suppress(ChildProcessError):  # where SIGCHLD is ignored nobody need wait
                os.waitpid(self._pid, 0)
        if said[:1] != b"+":
            raise Unavailable(said[1:].decode() or "the process that was to do it died")
        return bytes(said[1:])


def _work(make: Callable[[], bytes], parent: int, into: int, where: set[int]) -> NoReturn:
    """What the copy does, from its first moment to its last."""
    try:
        with suppress(OSError):
            os.sched_setaffinity(0, where)
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # whatever the server has
        with suppress(OSError):
            os.nice(NICE)
        os.dup2(into, PIPE)
        os.closerange(PIPE + 1, os.sysconf("SC_OPEN_MAX"))
        end_with(parent)
        for number in (signal.SIGTERM, signal.SIGINT):  # meant for the parent, which decides
            signal.signal(number, signal.SIG_IGN)
        gc.disable()  # it would write into every object, and so copy all memory
        try:
            said = b"+" + make()
        except BaseException as error:
            said = b"-" + (str(error) or repr(error)).encode()
        while said:
            said = said[os.write(PIPE, said) :]
    finally:
        os._exit(0)
