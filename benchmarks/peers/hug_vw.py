"""hug behind its own development server, VW. That server closes every connection after one reply."""

import sys

import numpy

numpy.unicode_ = numpy.str_  # noqa: NPY201  (hug 2.6.1 asks for the name that NumPy 2 dropped)
import falcon  # noqa: E402
import hug  # noqa: E402
from bandit import Bandit  # noqa: E402

port, catalog, folder, *cached = sys.argv[1:]
bandit = Bandit(catalog, folder, cached=bool(cached))


@hug.post("/choose")
def choose(context: hug.types.json):
    """Pick an ad."""
    event_id, ad, probability = bandit.choose(context)
    return {"event_id": event_id, "ad": ad, "probability": probability}


@hug.post("/reward")
def reward(event_id: hug.types.text, reward: hug.types.float_number):
    """Learn from a click."""
    if not bandit.reward(event_id, reward):
        raise falcon.HTTPNotFound
    return {"status": "learned"}


if __name__ == "__main__":
    hug.API(__name__).http.serve(host="127.0.0.1", port=int(port), display_intro=False)
