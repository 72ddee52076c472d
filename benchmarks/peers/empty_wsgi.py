"""A WSGI callable that reads the body and says nothing, on the server that banditads runs on: the limit."""

import logging
import sys

from granian.constants import HTTPModes, Interfaces

from banditads.server import _OneProcess


def application(environ, start_response):
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [("Content-Type", "application/json")])
    return [b"{}"]


def serve(application, port):
    """One process, as `banditads.server` has it."""
    _OneProcess(
        "empty",
        address="127.0.0.1",
        port=port,
        interface=Interfaces.WSGI,
        http=HTTPModes.http1,
        blocking_threads=64,
        blocking_threads_idle_timeout=60,
        backpressure=128,
        websockets=False,
        log_enabled=False,
    ).serve(target_loader=lambda: application, wrap_loader=False)


if __name__ == "__main__":
    logging.disable()
    serve(application, int(sys.argv[1]))
