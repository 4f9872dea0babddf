"""SIGINT and SIGTERM as a note to the loop, which stops between two iterations."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # those that end a run in an orderly way


@contextmanager
def noted_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGINT and SIGTERM go to the handler inside; only the main thread may set handlers, elsewhere nothing changes."""
    before: dict[int, Any] = {}
    try:
        for signum in SIGNALS:
            before[signum.value] = signal.signal(signum, handler)
    except ValueError:
        pass
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
