"""Trying again, a little later each time, until a deadline."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from time import monotonic


def waits(
    deadline: float,
    *,
    first: float = 0.1,
    most: float = 5.0,
    sleep: Callable[[float], object] | None = None,
) -> Iterator[int]:
    """Yield 0, 1, 2, … for each attempt, waiting between them (exponentially, with jitter; seconds), and end when
    `deadline` seconds have passed since the first."""
    pause = sleep or threading.Event().wait
    began, delay, attempt = monotonic(), first, 0
    while True:
        yield attempt
        attempt += 1
        left = deadline - (monotonic() - began)
        if left <= 0:
            return
        pause(min(delay * random.uniform(0.5, 1.0), left))
        delay = min(delay * 2, most)
