"""What goes wrong, one function each: it drives a server into it and audits what is left. Gives a `Tally`."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from campaign import Clients, Ledger, NotStarted, Server, Tally, audit, check_folder, records

SMALL = ("--snapshot-every", "0.1", "--segment-bytes", "20000")  # snapshots and segments all the time
EXT4_IOC_SHUTDOWN, WITHOUT_LOG = 0x8004587D, 2


class Impossible(Exception):
    """This machine cannot do that, and why."""


@contextmanager
def aside():
    """A folder for one phase, gone in the end."""
    with tempfile.TemporaryDirectory(prefix="banditads-faults-") as folder:
        yield Path(folder)


@contextmanager
def caught(tally: Tally):
    """A server that does not start again is a finding, not the end of the campaign."""
    try:
        yield
    except NotStarted as error:
        tally.expect(False, "refused", str(error))


def kills(count: int, seed: int = 1, bug: str = "", policy: str = "vw", sample: int | None = None) -> Tally:
    """SIGKILL at random instants, under load and while starting."""
    tally, ledger, dice = Tally(), Ledger(), random.Random(seed)
    with aside() as folder, caught(tally):
        server = Server(folder / "data", folder, "--policy", policy, *SMALL, bug=bug)
        clients = Clients(ledger, tally, seed * 1000)
        while tally.faults < count and not tally.wrong:
            with server.running(), clients.visiting(server):
                clients.wait(20 + dice.randrange(150))
                server.end()
            tally.faults += 1
            if dice.random() < 0.3:
                server.launch()
                time.sleep(dice.random())
                server.end()
                tally.faults += 1
            with server.running():
                audit(server, ledger, tally, sample, seed)
                server.end()
        tally.acknowledged = len(ledger.rewards)
    return tally


def sigterm(count: int, seed: int = 1, bug: str = "") -> Tally:
    """SIGTERM under load: exit 0 in time, a snapshot of everything, nothing lost."""
    tally, ledger = Tally(), Ledger()
    with aside() as folder, caught(tally):
        server = Server(folder / "data", folder, bug=bug)
        clients = Clients(ledger, tally, seed * 1000)
        for _ in range(count):
            with server.running(), clients.visiting(server):
                clients.wait(100)
                began = time.monotonic()
                code = server.end(signal.SIGTERM)
                took = time.monotonic() - began
            tally.faults += 1
            tally.expect(code == 0, "refused", f"exit {code}")
            tally.expect(took < 5, "refused", f"it took {took:.1f} s to end")
            newest = max((int(each.stem) for each in (folder / "data").glob("*.snapshot")), default=-1)
            end = len(records(folder / "data"))
            tally.expect(newest == end, "lost", f"the newest snapshot is of {newest}, the journal ends at {end}")
            with server.running():
                audit(server, ledger, tally, 100)
        tally.acknowledged = len(ledger.rewards)
    return tally


def two_processes(seed: int = 1, bug: str = "") -> Tally:
    """A second server on the directory is sent away with 73; the first does not notice."""
    tally, ledger = Tally(), Ledger()
    with aside() as folder, caught(tally):
        (folder / "second").mkdir()
        server = Server(folder / "data", folder, bug=bug)
        second = Server(folder / "data", folder / "second", bug=bug)
        clients = Clients(ledger, tally, seed * 1000)
        with server.running(), clients.visiting(server):
            clients.wait(30)
            try:
                with second.running():
                    tally.expect(False, "doubled", "two servers run on one directory")
            except NotStarted as refusal:
                tally.expect(refusal.code == 73, "refused", str(refusal))
            tally.faults += 1
            clients.wait(30)
            server.end()
        with server.running():  # no lock is left of the killed one
            audit(server, ledger, tally)
        tally.acknowledged = len(ledger.rewards)
    return tally


class Disk:
    """An ext4 file system in a file, whose power can be cut. Raises `Impossible` where there is none."""

    def __init__(self, folder: Path, megabytes: int = 32) -> None:
        self.image, self.point = folder / "image", folder / "disk"
        self.point.mkdir()
        mkfs = shutil.which("mkfs.ext4") or "/usr/sbin/mkfs.ext4"
        if os.getuid() != 0 or not Path(mkfs).exists():
            raise Impossible("cutting the power needs root and mkfs.ext4")
        with self.image.open("wb") as file:
            file.truncate(megabytes * 2**20)
        subprocess.run([mkfs, "-q", "-F", self.image], check=True, capture_output=True)

    def mount(self) -> None:
        """Plug it in; ext4 replays its own journal."""
        done = subprocess.run(["mount", "-o", "loop", self.image, self.point], capture_output=True, text=True)
        if done.returncode:
            raise Impossible(f"no loop device can be mounted here: {done.stderr.strip()}")

    def cut(self) -> None:
        """What has not reached the disk by now never will."""
        number = os.open(self.point, os.O_RDONLY)
        try:
            fcntl.ioctl(number, EXT4_IOC_SHUTDOWN, WITHOUT_LOG.to_bytes(4, "little"))
        finally:
            os.close(number)

    def unmount(self) -> None:
        """Unplug it, if it is plugged in."""
        if os.path.ismount(self.point):
            subprocess.run(["umount", self.point], check=True, capture_output=True)

    @contextmanager
    def mounted(self):
        """Plugged in, and unplugged in any case."""
        self.mount()
        try:
            yield self
        finally:
            with suppress(subprocess.CalledProcessError):
                self.unmount()
            if os.path.ismount(self.point):
                subprocess.run(["umount", "--lazy", self.point], check=True)


def power_cuts(count: int, seed: int = 1, bug: str = "", fsync: str = "always", window: float = 1.3) -> Tally:
    """The power goes under load. `everysec` may lose a suffix acknowledged within `window` seconds."""
    tally, dice = Tally(), random.Random(seed)
    with aside() as folder, caught(tally):
        disk = Disk(folder)
        with disk.mounted():
            ledger, clients = Ledger(), Clients(Ledger(), tally, seed * 1000)
            clients.ledger = ledger
            server = Server(disk.point / "data", folder, "--fsync", fsync, *SMALL, bug=bug)
            while tally.faults < count and not tally.wrong:
                with server.running(), clients.visiting(server):
                    clients.wait(20 + dice.randrange(150))
                    if fsync != "always":
                        time.sleep(dice.random() * 1.5)
                    cut_at = time.monotonic()
                    disk.cut()
                    clients.stop.set()
                    server.end()
                disk.unmount()
                disk.mount()
                tally.faults += 1
                survivors = _survivors(disk.point / "data")
                _forget_what_may_go(ledger, tally, survivors, cut_at if fsync != "always" else None, window)
                with server.running():
                    audit(server, ledger, tally, 200, seed)
                    server.end()
        tally.acknowledged = len(ledger.rewards)
    return tally


def _survivors(folder: Path) -> int:
    """The offset at which the journal ends after the cut."""
    return len(records(folder)) if folder.exists() else 0


def _forget_what_may_go(ledger: Ledger, tally: Tally, end: int, cut_at: float | None, window: float) -> None:
    """Decisions whose record may be lost leave the books; rewards that must not be lost are counted.

    A decision is durable with the next reward; a reward at once, or with `everysec` a moment later. What is
    left is a prefix: whatever stands below `end`.
    """
    for event_id, (value, offset, when) in list(ledger.rewards.items()):
        if offset < end:
            continue
        allowed = cut_at is not None and when >= cut_at - window
        tally.expect(allowed, "lost", f"reward {event_id} at {offset}, the journal ends at {end}")
        del ledger.rewards[event_id]
        ledger.unknown[event_id] = value
    for event_id, (*_, offset) in list(ledger.decisions.items()):
        if offset >= end:
            del ledger.decisions[event_id]
            ledger.unknown.pop(event_id, None)
    ledger.requests = {name: each for name, each in ledger.requests.items() if each in ledger.decisions}


__all__ = ["Disk", "Impossible", "check_folder", "kills", "power_cuts", "sigterm", "two_processes"]
