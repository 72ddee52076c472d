"""FastAPI, uvicorn with uvloop and httptools, VW: plain functions in FastAPI's threads, VW behind a lock.

That is what FastAPI's documentation advises for code that blocks.
"""

import sys
from threading import Lock

import uvicorn
from bandit import Bandit
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

port, catalog, folder, *cached = sys.argv[1:]
bandit, lock = Bandit(catalog, folder, cached=bool(cached)), Lock()
app = FastAPI()


class Visit(BaseModel):
    context: dict[str, str | float]


class Decision(BaseModel):
    event_id: str
    ad: str
    probability: float


class Reward(BaseModel):
    event_id: str
    reward: float


class Learned(BaseModel):
    status: str


@app.post("/choose")
def choose(visit: Visit) -> Decision:
    with lock:
        event_id, ad, probability = bandit.choose(visit.context)
    return Decision(event_id=event_id, ad=ad, probability=probability)


@app.post("/reward")
def reward(body: Reward) -> Learned:
    with lock:
        known = bandit.reward(body.event_id, body.reward)
    if not known:
        raise HTTPException(404, "no such event")
    return Learned(status="learned")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(port), access_log=False, log_level="warning")
