"""A sign of life from every rank, so that the others can say which one is gone. A thread and a key-value store, no collective."""

import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

BEAT = 1.0  # seconds between two beats
STALE = 20.0  # seconds without a beat after which a rank is gone
GRACE = 10.0  # seconds that the main thread has to end by itself once a rank is gone
DONE = "done"


@dataclass
class Sign:
    """What a rank tells of itself. ``left``: None while it runs, "done", or why it failed."""

    rank: int
    host: str
    pid: int
    step: int = 0
    beat: int = 0
    left: str | None = None

    @property
    def name(self) -> str:
        return f"rank {self.rank} ({self.host}, pid {self.pid})"


class Heartbeat:
    """Beats in a thread and watches the beats of the others; where one is gone and the main thread hangs, it ends the process."""

    def __init__(self, store: Any, rank: int, size: int):
        self.store, self.size = store, size
        self.mine = Sign(rank, socket.gethostname(), os.getpid())
        self.others: dict[int, Sign] = {}
        self._seen: dict[int, float] = {}
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._run, name="limbeck heartbeat", daemon=True)
        self._tell()

    def start(self) -> None:
        """Begin, once every rank has told of itself."""
        self._look()
        self._thread.start()

    def leave(self, why: str = DONE) -> None:
        """The last beat: this rank is done, or has failed."""
        self._stop.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()  # the store answers or fails in time; a thread inside it would abort the interpreter's end
        self.mine.left = why
        self._tell()

    def lost(self, patience: float) -> str | None:
        """Which rank is gone and since which step; waits up to ``patience`` seconds for that to show."""
        end = time.monotonic() + patience
        while True:
            self._look()
            if (found := self._gone(nearby=True)) or time.monotonic() > end:
                return found
            time.sleep(BEAT / 4)

    def _run(self) -> None:
        since = None
        while not self._stop.wait(BEAT):
            self.mine.beat += 1
            self._tell()
            self._look()
            if (found := self._gone()) is None:
                continue
            since = since or time.monotonic()
            if time.monotonic() - since > GRACE and not self._stop.is_set():
                print(f"limbeck: {found}; ended", file=sys.stderr, flush=True)
                os._exit(1)

    def _tell(self) -> None:
        self._ask(lambda: self.store.set(f"limbeck/{self.mine.rank}", json.dumps(asdict(self.mine))))

    def _look(self) -> None:
        others = [r for r in range(self.size) if r != self.mine.rank]
        found = self._ask(lambda: self.store.multi_get([f"limbeck/{r}" for r in others]))
        for rank, text in zip(others, found or [], strict=False):
            sign = Sign(**json.loads(text))
            if self.others.get(rank) != sign:
                self.others[rank], self._seen[rank] = sign, time.monotonic()

    def _ask(self, question: Any) -> Any:
        try:
            with self._lock:
                return question()
        except RuntimeError:  # the store is gone, and with it the rank that held it, if one did
            return None

    def _gone(self, nearby: bool = False) -> str | None:
        for rank, sign in sorted(self.others.items()):
            step = max(sign.step, self.mine.step)  # they keep step, and the last beat may be older than the last iteration
            if sign.left is not None:
                if sign.left != DONE:
                    return f"{sign.name} failed at step {step}: {sign.left}"
            elif time.monotonic() - self._seen[rank] > STALE or (nearby and sign.host == self.mine.host and _dead(sign.pid)):
                return f"{sign.name} died at step {step}"
        return None


def _dead(pid: int) -> bool:
    """Is there no such process on this machine, or only what is left of it?"""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except OSError:  # another user's, or no /proc
        return False
