"""StreamingBandit's way: a Tornado service that keeps nothing itself, its model in Redis.

StreamingBandit (Kruijswijk, van Emden, Parvinen, Kaptein 2020) reads the parameters of an experiment from
Redis at every request and writes them back at every reward, so any number of servers can share them. Here a
logistic model of 128 hashed visitor features for each ad, which is less than VW's visitor x ad features, and
epsilon-greedy. Redis is started here and counted as part of the service; it saves nothing to disk.
"""

import json
import random
import subprocess
import sys
import time
import uuid
import zlib
from pathlib import Path

import numpy as np
import redis
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.web import Application, HTTPError, RequestHandler

port, catalog, folder, *_ = sys.argv[1:]
SIZE, EPSILON, STEP = 128, 0.1, 0.3
ads = [json.loads(line)["id"] for line in Path(catalog).read_text().splitlines()]
log = open(Path(folder, "log.jsonl"), "a", buffering=1)  # noqa: SIM115


def write(event):
    log.write(json.dumps(event) + "\n")


def vector(context):
    """Hashed features of a visitor, shape (SIZE,)."""
    x = np.zeros(SIZE, np.float32)
    for name, value in context.items():
        if isinstance(value, str):
            x[zlib.crc32(f"{name}={value}".encode()) % SIZE] += 1
        else:
            x[zlib.crc32(name.encode()) % SIZE] += value
    return x


def weights(names):
    """What Redis has, shape (n, SIZE)."""
    zero = bytes(4 * SIZE)
    found = store.mget([f"theta:{name}" for name in names])
    return np.frombuffer(b"".join(each or zero for each in found), np.float32).reshape(-1, SIZE)


class Choose(RequestHandler):
    def post(self):
        context = json.loads(self.request.body)["context"]
        best = int(np.argmax(weights(ads) @ vector(context)))
        pick = random.randrange(len(ads)) if random.random() < EPSILON else best
        probability = EPSILON / len(ads) + (1 - EPSILON) * (pick == best)
        decision = {
            "event_id": uuid.uuid4().hex,
            "context": context,
            "ad": ads[pick],
            "probability": probability,
        }
        store.setex(f"open:{decision['event_id']}", 600, json.dumps(decision))
        write(decision)
        self.write({name: decision[name] for name in ("event_id", "ad", "probability")})


class Reward(RequestHandler):
    def post(self):
        body = json.loads(self.request.body)
        found = store.getdel(f"open:{body['event_id']}")
        if found is None:
            raise HTTPError(404)
        decision = json.loads(found)
        x, theta = vector(decision["context"]), weights([decision["ad"]])[0]
        error = body["reward"] - 1 / (1 + np.exp(-theta @ x))
        store.set(f"theta:{decision['ad']}", (theta + STEP * error * x).astype(np.float32).tobytes())
        write({"event_id": body["event_id"], "reward": body["reward"]})
        self.write({"status": "learned"})


def start_redis():
    """A Redis of our own, on a socket in the folder, that ends with us."""
    path = Path(folder, "redis.sock")
    command = ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder]
    subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)
    client = redis.Redis(unix_socket_path=str(path))
    for _ in range(200):
        try:
            client.ping()
            return client
        except redis.ConnectionError:
            time.sleep(0.02)
    raise SystemExit("redis-server does not answer")


if __name__ == "__main__":
    store = start_redis()
    HTTPServer(Application([("/choose", Choose), ("/reward", Reward)])).listen(int(port), "127.0.0.1")
    IOLoop.current().start()
