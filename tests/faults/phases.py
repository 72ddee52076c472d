"""What goes wrong, one function each: it drives a server into it and audits what is left. Gives a `Tally`."""

from __future__ import annotations

import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import zlib
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from campaign import (
    Clients,
    Ledger,
    Line,
    NotStarted,
    Server,
    Tally,
    audit,
    choose,
    folded,
    predictions,
    records,
    reward,
)

from banditads import events, settings, signing
from banditads.directory import read_config
from banditads.errors import Damaged, Misconfigured
from banditads.journal import connect, file
from banditads.journal.file import scan
from banditads.server import opened
from banditads.state import State

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
    except Damaged as error:
        tally.expect(False, "lost", str(error))
    except (KeyError, TypeError, ValueError) as error:  # a reply or a record that cannot be read
        tally.expect(False, "different", repr(error))


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
        while tally.faults < count and not tally.wrong:
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
            tally.expect(
                newest == end, "lost", f"the newest snapshot is of {newest}, the journal ends at {end}"
            )
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
                _forget_what_may_go(ledger, tally, survivors, cut_at - (window if fsync != "always" else 0.0))
                with server.running():
                    audit(server, ledger, tally, 200, seed)
                    server.end()
        tally.acknowledged = len(ledger.rewards)
    return tally


def _survivors(folder: Path) -> int:
    """The offset at which the journal goes on after the cut.

    Asked of a copy, which takes a segment that has no name yet for its own where it fits, as the server will.
    """
    if not folder.exists():
        return 0
    with tempfile.TemporaryDirectory() as copied:
        for file in folder.glob("*.journal*"):
            shutil.copy(file, copied)
        journal = connect(f"file:{copied}")
        journal.close()
        return journal.end


def _forget_what_may_go(ledger: Ledger, tally: Tally, end: int, since: float) -> None:
    """Decisions whose record may be lost leave the books; rewards that must not be lost are counted.

    A decision is durable with the next reward; a reward at once, or with `everysec` a moment later. What was
    answered after the cut was answered by nobody: a file system that is shut down lets an fdatasync that was
    under way say that all is well. What is left is a prefix: whatever stands below `end`.
    """
    for event_id, (value, offset, when) in list(ledger.rewards.items()):
        if offset < end:
            continue
        what = f"reward {event_id} at {offset}, {since - when:.4f} s before; the journal ends at {end}"
        tally.expect(when >= since, "lost", what)
        del ledger.rewards[event_id]
        ledger.unknown[event_id] = value
    for event_id, (*_, offset) in list(ledger.decisions.items()):
        if offset >= end:
            del ledger.decisions[event_id]
            ledger.unknown.pop(event_id, None)
    ledger.requests = {name: each for name, each in ledger.requests.items() if each in ledger.decisions}


def _used(folder: Path, ledger: Ledger, tally: Tally, seed: int, *arguments: str, bug: str = "") -> Server:
    """A server that was used and killed, with several segments and two snapshots."""
    server = Server(folder / "data", folder, *arguments, bug=bug)
    clients = Clients(ledger, tally, seed * 1000)
    with server.running(), clients.visiting(server):
        clients.wait(80)
        deadline = time.monotonic() + 20
        while len(list((folder / "data").glob("*.snapshot"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        clients.wait(40)
        server.end()
    return server


def torn_tails(real: int, seed: int = 1, bug: str = "", every: int = 1) -> Tally:
    """A record at the end was written in part: each number of bytes in process, some by a real server."""
    tally, ledger, dice = Tally(), Ledger(), random.Random(seed)
    with aside() as folder, caught(tally):
        server = _used(folder, ledger, tally, seed, "--policy", "uniform", *SMALL, bug=bug)
        with server.running():
            audit(server, ledger, tally, 50, seed)
            server.end()
        data = folder / "data"
        event = events.Ticked(time.time())
        last, record = _next_record(data, events.encode(event))
        whole = last.read_bytes()
        before = folded(data).digest()
        for size in range(1, len(record), every) if not bug else ():
            copy = _copy(data, folder / "copy")
            (copy / last.name).write_bytes(whole + record[:size])
            with opened(_settings(copy, "uniform")) as engine:
                tally.expect(engine.state.digest() == before, "different", f"a tail of {size} bytes")
                tally.expect(engine.journal.cut_bytes == size, "different", f"{size} bytes were not cut")
            tally.faults += 1
        for _ in range(real):
            last, record = _next_record(data, events.encode(event))
            with last.open("ab") as torn:
                torn.write(record[: dice.randrange(1, len(record))])
            clients = Clients(ledger, tally, seed * 1000 + 500 + tally.faults)
            with server.running(), clients.visiting(server):
                clients.wait(10)
                server.end()
            tally.faults += 1
            with server.running():
                audit(server, ledger, tally, 50, seed)
                server.end()
        tally.acknowledged = len(ledger.rewards)
    return tally


def _next_record(data: Path, payload: bytes) -> tuple[Path, bytes]:
    """(the last segment, what the next append would write to it)."""
    last = max(data.glob("*.journal"))
    salt = file.HEADER.unpack(last.read_bytes()[: file.HEADER.size])[4]
    return last, file._record(zlib.crc32(salt), len(records(data)), payload)


def _copy(data: Path, to: Path) -> Path:
    """A data directory with its key, in place of what was there."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(data, to)
    shutil.copy(signing.key_path("", data), signing.key_path("", to))
    return to


def _settings(data: Path, policy: str) -> settings.Settings:
    return settings.load(flags={"data_dir": str(data), "policy": policy})


def bit_flips(count: int, seed: int = 1, bug: str = "", real: int = 2) -> Tally:
    """One bit of one file is turned over: refused with the file's name, or the state is what it was."""
    tally, ledger, dice = Tally(), Ledger(), random.Random(seed)
    with aside() as folder, caught(tally):
        server = _used(folder, ledger, tally, seed, "--policy", "uniform", *SMALL, bug=bug)
        with server.running(), Line(server) as line:
            audit(server, ledger, tally, 50, seed)
            told = line.ask("GET", "/stats"), predictions(line)
            server.end()
        data, copy = folder / "data", folder / "copy"
        right = folded(data).digest()
        kinds = ["*.journal", "*.snapshot", "CONFIG", "LOCK", "key"]
        for number in range(count):
            _copy(data, copy)
            kind = kinds[number % len(kinds)]
            key = signing.key_path("", copy)
            target = key if kind == "key" else dice.choice(sorted(copy.glob(kind)))
            raw = bytearray(target.read_bytes())
            place = dice.randrange(len(raw))
            raw[place] ^= 1 << dice.randrange(8)
            target.write_bytes(raw)
            tally.faults += 1
            what = f"bit flipped in byte {place} of {target.name}"
            if number < real:
                _served(
                    Server(copy, folder, "--policy", "uniform", bug=bug), ledger, target, told, tally, what
                )
            else:  # the same code, without a process
                _flipped(copy, target, right, tally, what)
            if tally.wrong:
                break
        tally.acknowledged = len(ledger.rewards)
    return tally


def _served(server: Server, ledger: Ledger, target: Path, told, tally: Tally, what: str) -> None:
    """A server on a damaged directory refuses, or says what it said; of a damaged decision it says so."""
    try:
        with server.running(), Line(server) as line:
            now = line.ask("GET", "/stats"), predictions(line)
            tally.expect(now == told, "different", what)
            for event_id, (ad, probability, propensities, _) in ledger.decisions.items():
                status, said = line.ask("GET", f"/decisions/{event_id}")
                damaged = status == 500 and said["error"]["code"] == "damaged"
                fits = damaged or (said["ad"], said["probability"], said["propensities"]) == (
                    ad,
                    probability,
                    propensities,
                )
                tally.expect(fits, "different", f"{what}: decision {event_id} is {status} {said}")
    except NotStarted as refusal:
        named = refusal.code in (65, 78) and target.name in refusal.said
        tally.expect(named, "different", f"{what}: {refusal}")


def _flipped(copy: Path, target: Path, right: str, tally: Tally, what: str) -> None:
    try:
        with opened(_settings(copy, "uniform")) as engine:
            tally.expect(engine.state.digest() == right, "different", what)
            for offset, _ in engine.journal.read(0):  # what a start does not read is checked when it is
                tally.expect(offset >= 0, "different", what)
    except (Damaged, Misconfigured) as refusal:
        tally.expect(target.name in str(refusal), "different", f"{what}: {refusal}")


def full_disk(seed: int = 1, bug: str = "") -> Tally:
    """The disk fills up under load and gets space again, without a restart; then a restart."""
    tally, ledger = Tally(), Ledger()
    with aside() as folder, _small_disk(folder) as disk, caught(tally):
        server = Server(disk / "data", folder, "--policy", "uniform", bug=bug)
        clients = Clients(ledger, tally, seed * 1000)
        with server.running(), clients.visiting(server), Line(server) as line:
            clients.wait(50)
            ballast = disk / "ballast"
            with ballast.open("wb", buffering=0) as filler, suppress(OSError):
                while filler.write(b"x" * 256):
                    pass
            tally.faults += 1
            tally.expect(clients.refused.wait(20), "refused", "no reward was ever refused")
            tally.expect(line.ask("GET", "/readyz")[0] == 503, "refused", "/readyz says that all is well")
            time.sleep(0.3)
            status, said = line.ask("POST", "/choose", {"context": {"filler": "x" * 400}})
            tally.expect((status, said["offset"]) == (200, None), "refused", "it does not go on choosing")
            ballast.unlink()
            _until(
                lambda: line.ask("GET", "/readyz")[0] == 200, tally, "it did not notice that there is space"
            )
            clients.wait(50)
            server.end()
        with server.running():
            audit(server, ledger, tally, 100, seed)
            server.end()
        tally.acknowledged = len(ledger.rewards)
    return tally


@contextmanager
def _small_disk(folder: Path):
    disk = folder / "small"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, text=True
    )
    if done.returncode:
        raise Impossible(f"a small disk needs root and tmpfs: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def _until(true, tally: Tally, what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return
        time.sleep(0.02)
    tally.expect(False, "refused", what)


def _strace(seen: Path, *arguments: str) -> list[str]:
    """How a command is watched; it stays our own child. Raises `Impossible`."""
    strace = shutil.which("strace")
    if not strace:
        raise Impossible("strace is not installed")
    tried = subprocess.run([strace, "-o", seen, "true"], capture_output=True, text=True)
    if tried.returncode:
        raise Impossible(f"strace may not be used here: {tried.stderr.strip()}")
    return [strace, "-D", "-f", "--seccomp-bpf", "-o", str(seen), *arguments]


def fsync_errors(count: int, seed: int = 1, bug: str = "") -> Tally:
    """fdatasync fails once: no more is acknowledged, exit 74, and all that was acknowledged is there."""
    tally, ledger, dice = Tally(), Ledger(), random.Random(seed)
    with aside() as folder, caught(tally):
        for _ in range(count):
            when = dice.randrange(20, 60)
            watch = _strace(folder / "seen", "-e", "trace=fdatasync", "-e")
            watch.append(f"inject=fdatasync:error=EIO:when={when}")
            server = Server(folder / "data", folder, "--policy", "uniform", before=watch, bug=bug)
            clients = Clients(ledger, tally, seed * 1000 + 10 * tally.faults)
            with server.running(), clients.visiting(server):
                _until(
                    lambda server=server: (
                        server.process.poll() is not None or "INJECTED" in (folder / "seen").read_text()
                    ),
                    tally,
                    "no fdatasync failed",
                )
                acknowledged, deadline = len(ledger.rewards), time.monotonic() + 20
                while server.process.poll() is None and time.monotonic() < deadline:
                    if len(ledger.rewards) > acknowledged + 50:  # it goes on as if nothing were
                        break
                    time.sleep(0.01)
                code = server.process.poll()
                code = server.end() if code is None else code
            tally.faults += 1
            tally.expect(code == 74, "refused", f"after a failed fdatasync it ended with {code}")
            again = Server(folder / "data", folder, "--policy", "uniform")
            with again.running():
                audit(again, ledger, tally, 100, seed)
                again.end()
        tally.acknowledged = len(ledger.rewards)
    return tally


CALL = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)(?: resumed>|\((?:\d+<([^>]*)>)?)(.*)$")


def call_order(seed: int = 1, bug: str = "") -> Tally:
    """What the kernel was asked: to write a record, to sync it, to send the reply, in this order.

    And every new name is on the disk before its thread does anything else.
    """
    tally, ledger = Tally(), Ledger()
    with aside() as folder, caught(tally):
        seen = folder / "seen"
        calls = "trace=write,writev,sendto,sendmsg,fdatasync,fsync,rename,renameat,renameat2"
        watch = _strace(seen, "-y", "-xx", "-s", "900", "-e", calls)
        server = Server(folder / "data", folder, "--policy", "uniform", *SMALL, before=watch, bug=bug)
        clients = Clients(ledger, tally, seed * 1000)
        with server.running(), clients.visiting(server):
            clients.wait(150)
            server.end()
        replies = _check_order(seen.read_text(), str(folder / "data"), tally)
        tally.faults = 1
        tally.acknowledged = len(ledger.rewards)
        tally.expect(replies > 100, "refused", f"only {replies} acknowledgements were seen")
    return tally


def _check_order(text: str, data: str, tally: Tally) -> int:
    """Acknowledgements seen; each must be of a record that an fdatasync begun after its write covers.

    One of a segment that has no name yet covers nothing.
    """
    written: dict[int, tuple[str, int]] = {}  # offset -> (its segment, when its write had ended)
    syncing: dict[str, tuple[str, int]] = {}  # thread -> (file, when its fdatasync began)
    calling: dict[str, tuple[str, str, str]] = {}  # thread -> what was not finished when another one came
    named: dict[str, str] = {}  # thread -> new name that is not on the disk yet
    durable: dict[str, int] = {}  # segment -> every record whose write had ended by then is on the disk
    replies = 0
    for now, line in enumerate(text.splitlines()):
        found = CALL.match(line)
        if not found:
            continue
        thread, call, path, rest = found.groups()
        begins, ends = "resumed>" not in line, "<unfinished" not in line
        if begins:
            calling[thread] = call, path or "", rest
        call, path, first = calling.get(thread, (call, path or "", rest))
        path = _plain(path)
        first = _plain(first)
        if begins and thread in named:
            done = call == "fsync" and path == data
            tally.expect(done, "lost", f"{named[thread]} got its name, and the next call is {call} of {path}")
            del named[thread]
        if begins and call in ("fdatasync", "fsync") and path.endswith(".journal"):
            syncing[thread] = path, now
        if begins and (at := first.find('"status":"applied","offset":')) >= 0 and "socket" in path:
            offset = int(re.match(r"\d+", first[at + 28 :])[0])
            replies += 1
            segment, when = written.get(offset, ("", now))
            good = when <= durable.get(segment, -1)
            tally.expect(good, "lost", f"{offset} was acknowledged before it was on the disk")
        if ends and call == "write" and path.removesuffix(".early").endswith(".journal"):
            raw = bytes.fromhex("".join(re.findall(r"\\x([0-9a-f]{2})", calling[thread][2])))
            written[int.from_bytes(raw[8:16], "little")] = path.removesuffix(".early"), now
        if ends and call in ("fdatasync", "fsync") and thread in syncing and "= 0" in line:
            segment, began = syncing.pop(thread)
            durable[segment] = max(durable.get(segment, -1), began)
        if ends and call.startswith("rename") and data in first and "= 0" in line:
            named[thread] = first
    return replies


def _plain(text: str) -> str:
    """What strace -xx wrote in hexadecimal."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), text)


def clock_steps(seed: int = 1, bug: str = "") -> Tally:
    """The clock on the wall is set back, ahead, and far ahead."""
    tally, ledger = Tally(), Ledger()
    library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
    if not library:
        raise Impossible("libfaketime is not installed")
    with aside() as folder, caught(tally):
        steps = folder / "steps"
        environ = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(steps),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        server = Server(
            folder / "data",
            folder,
            "--policy",
            "uniform",
            "--reward-wait",
            "100",
            environ=environ,
            bug=bug or "none",
        )

        def step(seconds):
            new = folder / "step"
            new.write_text(f"{seconds:+d}")
            new.replace(steps)  # never empty
            tally.faults += 1

        step(0)
        with server.running(), Line(server) as line:

            def expired():
                return line.ask("GET", "/stats")[1]["expired"]

            for event_id in ("back", "before", "late", "later"):
                choose(line, {"event_id": event_id}, ledger, tally)
            step(-250)
            choose(line, {"event_id": "young"}, ledger, tally)
            reward(line, "back", 0.5, ledger, tally)
            step(0)
            reward(line, "young", 0.25, ledger, tally)
            reward(line, "before", 0.75, ledger, tally)
            step(200)
            _until(lambda: expired() == 2, tally, "time that has passed expires nothing")
            reward(line, "late", 1.0, ledger, tally)
            tally.expect("late" in ledger.late, "doubled", "a late reward counts")
            step(-50)
            reward(line, "later", 1.0, ledger, tally)
            tally.expect("later" in ledger.late, "doubled", "a clock set back brought a decision back")
            step(200)
            choose(line, {"event_id": "leap"}, ledger, tally)
            step(10_000)

            def alarms():
                return [alarm["code"] for alarm in line.ask("GET", "/readyz")[1]["alarms"]]

            _until(lambda: alarms() == ["clock"], tally, "a leap of the clock raises no alarm")
            tally.expect(expired() == 2, "lost", "a leap of the clock expires what waits")
            reward(line, "leap", 0.5, ledger, tally)
            tally.expect("leap" in ledger.rewards, "lost", "a leap of the clock costs a reward")
            server.end()
        step(10_000)
        with server.running():
            audit(server, ledger, tally)
            with Line(server) as line:
                tally.expect(
                    line.ask("GET", "/stats")[1]["late"] == 2, "doubled", "late rewards count after a restart"
                )
            server.end()
        tally.acknowledged = len(ledger.rewards)
    return tally


def delivered_twice(seed: int = 1, policy: str = "vw") -> Tally:
    """Every record comes twice, and all of them once more: nothing changes."""
    tally, ledger = Tally(), Ledger()
    with aside() as folder, caught(tally):
        _used(folder, ledger, tally, seed, "--policy", policy, *SMALL)
        data = folder / "data"
        once, twice = folded(data), State.of(read_config(data))
        for offset, record in scan(data):
            for _ in range(2):
                twice.apply(offset, events.decode(record))
        for offset, record in scan(data):
            twice.apply(offset, events.decode(record))
            tally.faults += 1
        tally.expect(once.digest() == twice.digest(), "doubled", "records that come twice count twice")
        tally.acknowledged = len(ledger.rewards)
    return tally


def twins(visits: int, seed: int = 1, bug: str = "", policy: str = "vw") -> Tally:
    """One visitor, the same visits twice: with kills and retries, and without. Every bit must be the same."""
    tally = Tally()
    with caught(tally):
        crashed = _visits(visits, seed, bug, policy, tally, crash=True)
        straight = _visits(visits, seed, bug, policy, tally, crash=False)
        for name, one, other in zip(("decisions", "predictions", "model"), crashed, straight, strict=True):
            tally.expect(one == other, "different", f"{name} with crashes and without")
    return tally


def _visits(visits: int, seed: int, bug: str, policy: str, tally: Tally, crash: bool):
    """(every decision, /predict, the model) after the visits."""
    dice, ledger = random.Random(seed), Ledger()
    fatal = random.Random(f"{seed} crashes")
    with aside() as folder:
        server = Server(folder / "data", folder, "--policy", policy, *SMALL, bug=bug)
        with ExitStack() as stack:
            stack.enter_context(server.running())
            lines = [stack.enter_context(Line(server))]

            def ask(send):
                while True:
                    timer = None
                    if crash and fatal.randrange(12) == 0:
                        timer = threading.Timer(fatal.random() * 0.01, server.process.kill)
                        timer.start()
                    answered = send(lines[-1])
                    if timer:
                        timer.join()
                    if answered is not False and server.process.poll() is None and not timer:
                        return
                    if timer or server.process.poll() is not None:
                        server.end()
                        stack.enter_context(server.running())
                        lines.append(stack.enter_context(Line(server)))
                        tally.faults += 1
                        if answered is not False:
                            return

            for number in range(visits):
                context = {"device": f"d{dice.randrange(3)}", "age": dice.randrange(60)}
                body = {"event_id": f"v{number}", "context": context}
                ask(lambda line, body=body: choose(line, body, ledger, tally))
                earlier, value = (
                    f"v{dice.randrange(max(0, number - 10), number + 1)}",
                    dice.randrange(65) / 64,
                )
                if dice.random() < 0.7 and earlier not in ledger.rewards:
                    pair = earlier, value
                    ask(lambda line, pair=pair: reward(line, *pair, ledger, tally, known=pair))
            audit(server, ledger, tally, 50, seed)
            said = predictions(lines[-1])
            server.end()
        tally.acknowledged += len(ledger.rewards)
        decisions = {name: noted[:3] for name, noted in ledger.decisions.items()}
        return decisions, said, folded(folder / "data").policy.dump()


PHASES = {  # name -> the phase in a short form, with a bug
    "kills": lambda bug="": kills(4, bug=bug, sample=100),
    "power cuts": lambda bug="": power_cuts(4, bug=bug),
    "SIGTERM": lambda bug="": sigterm(2, bug=bug),
    "two processes": lambda bug="": two_processes(bug=bug),
    "torn tails": lambda bug="": torn_tails(2, bug=bug),
    "bit flips": lambda bug="": bit_flips(30, bug=bug, real=30 if bug else 2),
    "full disk": lambda bug="": full_disk(bug=bug),
    "failing fsync": lambda bug="": fsync_errors(1, bug=bug),
    "order of calls": lambda bug="": call_order(bug=bug),
    "clock": lambda bug="": clock_steps(bug=bug),
    "twins": lambda bug="": twins(80, bug=bug),
}
CATCHES = {  # planted bug -> a phase that notices it
    "no_fsync": "power cuts",
    "ack_before_write": "order of calls",
    "ack_before_fsync": "order of calls",
    "rename_without_directory_fsync": "order of calls",
    "snapshot_off_by_one": "SIGTERM",
    "snapshot_without_duplicates": "kills",
    "snapshot_without_request_ids": "kills",
    "learns_one_behind": "kills",
    "rounded_probabilities": "kills",
    "torn_tail_not_truncated": "torn tails",
    "no_checksum": "bit flips",
    "fsync_error_ignored": "failing fsync",
    "fsync_error_retried": "failing fsync",
    "half_a_record_stays": "full disk",
    "lock_ignored": "two processes",
    "expiry_by_the_wall_clock": "clock",
    "no_snapshot_at_the_end": "SIGTERM",
}
