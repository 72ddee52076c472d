"""One engine behind one WSGI server in one process: start, serve, stop; and recover from whatever stopped it.

The server is granian: maintained, with wheels, the fastest that reads chunked bodies and keeps pipelined
requests in order. Its worker runs in a thread of this process, because all state is in this process.
"""

from __future__ import annotations

import gc
import ipaddress
import logging
import secrets
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.net import SocketSpec  # type: ignore[attr-defined]
from granian.server import mt

from . import api, diagnosis, keys, parsing, recommenders, signing, worth
from .clock import Clock
from .directory import DataDirectory, read_config
from .engine import Engine, recover
from .erasing import Scrubber, Stopped
from .errors import DiskFailure, Invalid, Misconfigured, Unavailable
from .events import Ad
from .forking import stay_on_one_processor
from .guard import IDLE, Door, give_up_on_who_does_not_read, raise_limits
from .journal.file import Journal
from .logs import open_bandit
from .replies import Replies
from .settings import Settings
from .snapshots import Snapshots
from .state import USUAL, State
from .turns import Turns

log = logging.getLogger(__name__)

SCRUB_AGAIN = 60.0  # seconds after which erasing is tried again, if the disk was in the way
GRACE = 2.0  # seconds for requests under way when the server is told to stop


class _Awake(threading.Event):
    """An event whose waiter looks up twice a second.

    A signal that the system hands to another thread is handled when the main thread next wakes; one that
    sleeps without end would never stop serving.
    """

    def wait(self, timeout: float | None = None) -> bool:
        while timeout is None and not super().wait(0.5):
            pass
        return super().wait(timeout)


class _OneProcess(mt.MTServer):
    """granian with its worker in a thread of this process.

    granian offers that for free-threaded Python only, because several workers would share one lock. There is
    one worker here, and the lock is the engine's anyway.
    """

    def _check_gil(self) -> None:
        pass

    def _init_shared_socket(self) -> None:
        """Make the socket here, as granian does where its workers cannot, to say more of it."""
        listening: Any = SocketSpec(self.bind_addr, self.bind_port, self.backlog).build()
        self._ssp, self._shd, self._sfd = None, listening, listening.get_fd()
        give_up_on_who_does_not_read(listening.get_fd())

    def _stop_workers(self) -> None:
        """Requests under way get `GRACE` to end; whoever has not even finished asking does not keep us."""
        for worker in self.wrks:
            worker.terminate()  # type: ignore[no-untyped-call]
            worker.join(GRACE)  # type: ignore[no-untyped-call]
        self.wrks.clear()


def new_state(settings: Settings) -> State:
    """A state that knows nothing yet; what the directory was made with holds where nothing else is named."""
    made_with = read_config(Path(settings.data_dir)) or {}
    policy = settings.policy or made_with.get("policy") or USUAL
    if made_with.get("policy") == policy:
        silence = made_with.get("silence", "wait")  # older directories do not say
    else:
        silence = "immediate" if policy == USUAL else "wait"
    joining: dict[str, Any] = {}
    if settings.reward_aggregation != "earliest":  # the default is not part of older directories' identity
        joining["aggregation"] = settings.reward_aggregation
    return State(
        policy,
        settings.policy_options,
        reward_min=settings.reward_min,
        reward_max=settings.reward_max,
        recommender=settings.recommender or "crosses",
        recommender_options=settings.recommender_options,
        recommend_from=0 if settings.recommender else recommenders.LARGE,
        max_users=settings.max_users,
        half_life=settings.user_half_life,
        wait=settings.reward_wait,
        default=settings.default_reward,
        max_open=settings.max_pending,
        max_open_bytes=settings.max_pending_bytes,
        max_done=settings.max_settled,
        advise=settings.advise,
        silence=settings.silence or silence,
        challengers=settings.challengers.split(),
        floor=settings.floor,
        **joining,
    )


@contextmanager
def opened(settings: Settings, state: State | None = None) -> Iterator[Engine]:
    """The engine of a data directory: locked, recovered, with its catalog; closed and saved in the end.

    `state` is an empty one of another configuration than the settings'.
    """
    folder = Path(settings.data_dir)
    ads = read_catalog(settings.catalog)
    state = state or new_state(settings)
    key_file = signing.key_path(settings.key_file, folder)
    if not key_file.exists() and (folder / "CONFIG").exists():
        log.warning(
            "the key %s is missing: with a new one, old event ids and snapshots mean nothing", key_file
        )
    key = signing.load_or_create(key_file)
    with DataDirectory(folder) as directory:
        relearn = directory.check(state.identity, relearn=settings.relearn)
        journal = Journal(
            str(folder),
            fsync=settings.fsync,
            segment_bytes=settings.segment_bytes,
            segment_seconds=settings.segment_age,
        )
        try:
            snapshots = Snapshots(folder, signing.derive(key, "snapshots"))
            if relearn:
                _forget(directory, journal, snapshots, state)
            recover(state, journal, snapshots)
            clock = Clock()
            engine = Engine(
                state,
                journal,
                ids=signing.EventIds(key),
                clock=clock,
                floor=settings.floor,
                salt=settings.salt,
                max_scored=settings.max_scored,
                proposals=settings.proposals,
                snapshots=snapshots,
                keep_journal=settings.keep_journal,
                promote=settings.promote,
                promote_after=settings.promote_after,
                watch=lambda: diagnosis.leap(clock.ahead),
            )
            if ads and not state.catalog.ads:
                engine.put_ads(ads)
            elif ads:
                log.info("there are ads in the catalog already: %s is not read again", settings.catalog)
            yield engine
            if not engine.failed():
                try:
                    engine.snapshot()
                except Unavailable as error:  # the next start folds more of the journal, no more than that
                    log.error("no snapshot at the end: %s", error)
        finally:
            with suppress(DiskFailure):  # already reported by whoever met it first
                journal.close()


def pseudonyms(settings: Settings) -> signing.Pseudonyms:
    """What is written down instead of users' ids; the key is there once the directory was opened."""
    return signing.Pseudonyms(signing.load(signing.key_path(settings.key_file, Path(settings.data_dir))))


def _forget(directory: DataDirectory, journal: Journal, snapshots: Snapshots, state: State) -> None:
    """What was learned under another configuration goes; killed anywhere in here, the next start goes on."""
    if journal.start > 0:
        raise Misconfigured(
            f"--relearn needs the journal from its beginning, and it begins at offset {journal.start}"
        )
    snapshots.clear()
    directory.commit(state.identity)


def read_catalog(name: str) -> list[Ad]:
    """The ads of a JSON Lines file, or the bundled ones."""
    if not name:
        return []
    if name == "demo":
        return list(open_bandit.items("all"))
    try:
        return parsing.check_ads(Path(name).read_bytes(), lines=True)
    except OSError as error:
        raise Misconfigured(f"the catalog {name} cannot be read: {error.strerror}") from None
    except Invalid as error:
        raise Misconfigured(f"the catalog {name} is refused: {error.field}: {error.message}") from None


class _Housekeeper(threading.Thread):
    """What has to happen though nobody asks: silence, snapshots, and giving up when the disk has failed."""

    def __init__(self, engine: Engine, settings: Settings, door: Door, give_up: Callable[[], None]) -> None:
        super().__init__(name="housekeeper", daemon=True)
        self.door = door
        self.engine, self.settings, self.give_up = engine, settings, give_up
        self.stop = threading.Event()
        self.saved = time.monotonic()
        self.alarms: set[str] = set()  # codes of those that were logged
        self.settled = self._settled()
        self.scrubber = Scrubber(engine, self.stop)
        self.scrubbing = threading.Thread()  # takes as long as the journal is long, so it has its own
        self.scrub_after = 0.0  # by the monotonic clock

    def _settled(self) -> int:
        total = self.engine.state.stats.total
        return total.rewards + total.expired

    def run(self) -> None:
        pause = max(0.05, min(1.0, self.settings.snapshot_every, self.settings.reward_wait))  # seconds
        while not self.stop.wait(pause):
            try:
                if self.engine.failed():
                    log.critical("stopping: %s", self.engine.failed())
                    self.give_up()
                    return
                self._warn()
                self.door.clear()
                self.engine.tick()
                self.engine.journal.settle()
                self._snapshot()
                self._scrub()
            except (Unavailable, DiskFailure) as error:
                log.error("housekeeping: %s", error)
            except Exception:  # a bug; without ticks and snapshots the rest still works, so it goes on
                log.exception("housekeeping failed")
        if self.scrubbing.is_alive():
            self.scrubbing.join()
        self._warn()

    def _scrub(self) -> None:
        """Erase from disk and model who was erased, if anybody was."""
        if not self.scrubbing.is_alive() and time.monotonic() >= self.scrub_after and self.scrubber.pending():
            self.scrub_after = time.monotonic() + SCRUB_AGAIN
            self.scrubbing = threading.Thread(target=self._erase, name="scrubber", daemon=True)
            self.scrubbing.start()

    def _erase(self) -> None:
        try:
            self.scrubber.scrub()
            self.scrub_after = 0.0
        except Stopped:
            pass
        except (Unavailable, DiskFailure) as error:
            log.error("users were erased, but traces of them are left; it is tried again: %s", error)
        except Exception:
            log.exception("users were erased, but traces of them are left; it is tried again")

    def _warn(self) -> None:
        """Say of an alarm that it began, once."""
        raised = {alarm.code: alarm for alarm in self.engine.alarms()}
        for code in sorted(raised.keys() - self.alarms):
            log.warning("alarm: %s: %s", raised[code].message, raised[code].advice)
        self.alarms = set(raised)

    def _snapshot(self) -> None:
        late = time.monotonic() - self.saved >= self.settings.snapshot_every
        many = self._settled() - self.settled >= self.settings.snapshot_rewards
        if (late or many) and self.engine.snapshot_offset < self.engine.state.applied:
            self.saved, self.settled = (
                time.monotonic(),
                self._settled(),
            )  # one that fails is not tried at once
            self.engine.snapshot()


def serve(settings: Settings, say: Callable[[str], None] = print) -> None:
    """Serve until SIGTERM or SIGINT; then save and return. Raises `Fatal` for what makes that impossible."""
    known = keys.Keys(keys.keys_path(settings.keys_file, Path(settings.data_dir)))
    port = check_address(settings, bool(known.known))
    raise_limits()
    if settings.one_processor:
        stay_on_one_processor()
    with opened(settings) as engine:
        server = _OneProcess(
            "banditads",
            address="127.0.0.1" if settings.host == "localhost" else settings.host,
            port=port,
            interface=Interfaces.WSGI,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=int(1000 * IDLE), max_buffer_size=64 * 2**10),
            blocking_threads=settings.threads,
            blocking_threads_idle_timeout=60,
            backpressure=2 * settings.threads,
            backlog=4096,
            websockets=False,
            log_enabled=False,
        )
        server.main_loop_interrupt = _Awake()
        door = Door(settings.body_timeout)
        door.port = port
        housekeeper = _Housekeeper(engine, settings, door, server.signal_handler_interrupt)
        housekeeper.start()
        threading.Thread(target=_announce, args=(engine, settings, port, known, say), daemon=True).start()
        application = api.build(
            engine,
            known,
            door,
            pseudonyms(settings),
            worths={
                "click": worth.parse(settings.click_reward),
                "conversion": worth.parse(settings.conversion_reward),
                "dwell": worth.parse(settings.dwell_reward),
            },
            origins=parsing.origins(settings.cors_origins),
            turns=Turns(),
        )
        gc.collect()
        gc.freeze()  # what is there now stays: a collection looks at what came since, and copies no pages
        replies = Replies(engine.journal.sync if settings.fsync == "always" else None)
        mt._wsgi_call_wrap = lambda application, *_: replies.of(application)  # type: ignore[attr-defined]
        server.serve(target_loader=lambda: application, wrap_loader=False)
        housekeeper.stop.set()
        housekeeper.join()
        if engine.failed():
            raise DiskFailure(engine.failed())


def check_address(settings: Settings, has_keys: bool) -> int:
    """The port to listen on. Raises `Misconfigured` if the address is taken, or open to others unasked."""
    try:
        loopback = settings.host == "localhost" or ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        raise Misconfigured(f"setting host: {settings.host!r} is not an address") from None
    if not (loopback or has_keys or settings.allow_remote):
        raise Misconfigured(
            f"setting host: {settings.host} can be reached by others and there are no keys; "
            "make some with `banditads key create`, or listen on 127.0.0.1 (or, behind a proxy or in a "
            "container, set allow_remote)"
        )
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:  # granian shares ports, so it would not notice that one is taken
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise Misconfigured(
                f"setting port: cannot listen on {settings.host}:{settings.port}: {error.strerror}"
            ) from None
        port: int = probe.getsockname()[1]
        return port


def _announce(
    engine: Engine, settings: Settings, port: int, known: keys.Keys, say: Callable[[str], None]
) -> None:
    """Say where the server is, once it answers."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "localhost": "127.0.0.1"}.get(host, host)
    url = f"http://{host}:{port}"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would not find us
    while True:
        try:
            direct.open(f"{url}/healthz", timeout=5).read()
            break
        except OSError:
            time.sleep(0.02)
    ads = list(engine.state.catalog.ads.values())
    said = [
        f"banditads answers at {url} (policy {engine.state.policy_name}, {len(ads)} ads, "
        f"data in {settings.data_dir})"
    ]
    event_id = f"try-{secrets.token_hex(4)}"
    placements = min((ad.placements for ad in ads), key=len, default=())
    placement = f"&placement={quote(placements[0], safe='')}" if placements else ""
    key = ' -H "Authorization: Bearer $KEY"' if known.configured else ""
    said += [
        f"  curl{key} '{url}/choose?event_id={event_id}&user_id=u1&device=mobile&daypart=evening{placement}'",
        f"  curl{key} {url}/reward -H 'Content-Type: application/json' "
        f'-d \'{{"event_id": "{event_id}", "reward": {settings.reward_max!r}}}\'',
    ]
    if not ads:
        said[1:] = ["  There are no ads yet: see --catalog, and PUT /catalog/ads/{id}."]
    say("\n".join(said))
