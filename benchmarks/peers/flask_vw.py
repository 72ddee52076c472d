"""Flask, gunicorn with eight threads in one worker, VW behind a lock."""

import sys
from threading import Lock

from bandit import Bandit
from flask import Flask, abort, jsonify, request
from gunicorn.app.base import BaseApplication

port, catalog, folder, *cached = sys.argv[1:]
app, lock = Flask(__name__), Lock()


@app.post("/choose")
def choose():
    with lock:
        event_id, ad, probability = bandit.choose(request.get_json()["context"])
    return jsonify(event_id=event_id, ad=ad, probability=probability)


@app.post("/reward")
def reward():
    body = request.get_json()
    with lock:
        known = bandit.reward(body["event_id"], body["reward"])
    if not known:
        abort(404)
    return jsonify(status="learned")


class Gunicorn(BaseApplication):
    """gunicorn without a configuration file."""

    def load_config(self):
        for name, value in {
            "bind": f"127.0.0.1:{port}",
            "worker_class": "gthread",
            "workers": 1,
            "threads": 8,
            "keepalive": 60,
        }.items():
            self.cfg.set(name, value)

    def load(self):
        global bandit  # noqa: PLW0603  (made in the worker, after the fork)
        bandit = Bandit(catalog, folder, cached=bool(cached))
        return app


if __name__ == "__main__":
    Gunicorn().run()
