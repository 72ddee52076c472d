"""A few at once, the others in the order in which they came.

An engine is one lock, and Python is another. Threads that want both pass each other, are woken in vain and
queue up again at the end: with 64 connections the slowest hundredth of choices waited three to five times as
long as half of them. Where only a few compete, nobody is passed for long. `threading.Semaphore` is no help:
whoever comes may take the place for which another was woken, and the slowest hundredth waited twice as long.

>>> turns = Turns(2)
>>> with turns, turns:
...     turns.free
0
>>> turns.free
2
"""

from __future__ import annotations

import threading
from collections import deque

ABREAST = 8  # with 4, a tenth fewer choices a second; with 16, those who are passed are late again


class Turns:
    """A context manager that lets so many threads in at once.

    Attributes
    ----------
    free
        How many more may come in; while somebody waits, none.
    waiting
        What those who wait for their turn sleep on, who came first at the front.
    """

    def __init__(self, abreast: int = ABREAST) -> None:
        self.free = abreast
        self.waiting = deque[threading.Lock]()
        self._guard = threading.Lock()

    def __enter__(self) -> None:
        with self._guard:
            if self.free:
                self.free -= 1
                return
            turn = threading.Lock()
            turn.acquire()
            self.waiting.append(turn)
        turn.acquire()

    def __exit__(self, *error: object) -> None:
        with self._guard:
            if self.waiting:
                self.waiting.popleft().release()  # it is theirs now: whoever comes cannot take it
            else:
                self.free += 1
