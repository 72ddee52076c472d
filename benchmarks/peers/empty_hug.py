"""A hug route that says nothing, as hug's tutorial writes it, on the server that banditads runs on."""

import sys

import banditads.api  # noqa: F401  (makes hug importable beside NumPy 2)

import hug  # isort: skip
from empty_wsgi import serve


@hug.post("/choose")
def choose(body):
    """Nothing."""
    return {}


if __name__ == "__main__":
    serve(hug.API(__name__).http.server(), int(sys.argv[1]))
