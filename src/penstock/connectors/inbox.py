"""Between a thread that waits for the network and the worker's loop that must not: a bounded queue."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

JOIN_SECONDS = 10.0


class InboxClosed(Exception):
    """Raised in the feeding thread when the reader was closed: time to end."""


class Inbox:
    """Records from one feeding thread. `put` blocks while the queue is full, which is the back-pressure."""

    def __init__(self, capacity: int, wake: Callable[[], None]) -> None:
        self._capacity, self._wake = capacity, wake
        self._records: deque[Any] = deque()
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._ended = self.closed = False
        self._thread: threading.Thread | None = None

    def start(self, feed: Callable[[Inbox], None], name: str) -> None:
        """Run `feed(inbox)` in a thread; what it raises is raised by `take`, its return is the end of input."""

        def run() -> None:
            try:
                feed(self)
            except InboxClosed:
                pass
            except Exception as error:
                self._error = error
            self._ended = True
            self._wake()

        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._thread.start()

    def put(self, records: list[Any]) -> None:
        """Add records in order, waiting while there is no room. Raises `InboxClosed`."""
        for start in range(0, len(records), self._capacity):
            piece = records[start : start + self._capacity]
            with self._changed:
                while not self.closed and self._records and len(self._records) + len(piece) > self._capacity:
                    self._changed.wait()
                if self.closed:
                    raise InboxClosed
                self._records.extend(piece)
            self._wake()

    def pause(self, seconds: float) -> None:
        """Wait in the feeding thread. Raises `InboxClosed` as soon as the reader is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed, seconds)
            if self.closed:
                raise InboxClosed

    def take(self, limit: int) -> list[Any]:
        """Up to `limit` records, at once. Raises what the feeding thread raised, once its records are taken."""
        with self._changed:
            batch = [self._records.popleft() for _ in range(min(limit, len(self._records)))]
            self._changed.notify_all()
        if not batch and self._error is not None:
            raise self._error
        return batch

    @property
    def exhausted(self) -> bool:
        """Whether the thread ended well and everything was taken."""
        return self._ended and self._error is None and not self._records

    def __len__(self) -> int:
        return len(self._records)

    def close(self) -> None:
        """End the thread; waits for it a bounded time."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)
