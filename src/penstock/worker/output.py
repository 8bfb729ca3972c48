"""What models print and log in a worker of a cluster, as `Log` messages that say which model it was.

`print` and the root logger are redirected. A line belongs to the model whose code runs; in a thread that a model has
started, to that model. Lines of nobody, and what native code writes, stay in the worker's own log file. Nothing here
blocks: lines wait in a bounded queue for the worker's loop, which sends them.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from penstock.worker.messages import Log

__all__ = ["LINES_PER_SECOND", "LONGEST_LINE", "Capture", "sendable"]

LINES_PER_SECOND = 200
"""More lines of one model are dropped, and counted."""
LONGEST_LINE = 4096
"""Characters; what follows is cut."""
_MOST_WAITING = 2000
"""Lines that wait for the loop, all models together."""
_TELL_AFTER = 1.0
"""Seconds after which it is said how many lines were left out."""
_OWNER = "_penstock_model"


@dataclass
class _Allowance:
    """How many lines a model may still write: a bucket that holds one second's worth."""

    left: float = LINES_PER_SECOND
    at: float = field(default_factory=time.monotonic)
    dropped: int = 0
    dropped_at: float = 0.0
    """When the first of them was dropped."""

    def take(self, now: float) -> bool:
        """Whether one more line may pass."""
        self.left = min(LINES_PER_SECOND, self.left + (now - self.at) * LINES_PER_SECOND)
        self.at = now
        if self.left < 1:
            self.drop(now)
            return False
        self.left -= 1
        return True

    def drop(self, now: float) -> None:
        """One line is left out."""
        if not self.dropped:
            self.dropped_at = now
        self.dropped += 1


class Capture:
    """Gathers lines from any thread until the loop takes them. One for a process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.model = ""
        """Whose code the worker's loop runs; empty: nobody's."""
        self._clock = clock
        self._loop = threading.get_ident()
        self._lines: deque[Log] = deque()
        self._allowances: dict[str, _Allowance] = {}
        # A finaliser that prints may run while the lock is held.
        self._lock = threading.RLock()

    def install(self) -> None:
        """Redirect `sys.stdout`, `sys.stderr` and the root logger of this process."""
        worker_out, worker_log = sys.stdout, sys.stderr

        def restore() -> None:
            sys.stdout, sys.stderr = worker_out, worker_log

        os.register_at_fork(after_in_child=restore)  # nobody would send what a child process gathers
        sys.stdout = _Stream(self, worker_out, "info")
        sys.stderr = _Stream(self, worker_log, "warning")
        root = logging.getLogger()
        root.addHandler(_Handler(self, worker_log))
        root.setLevel(logging.INFO)
        _mark_threads(self)

    def owner(self) -> str:
        """The model whose code runs in this thread; empty: nobody's."""
        if threading.get_ident() == self._loop:
            return self.model
        return str(getattr(threading.current_thread(), _OWNER, ""))

    def write(self, model: str, level: str, line: str) -> None:
        """One line of a model; from any thread."""
        line = sendable(line, LONGEST_LINE)
        with self._lock:
            allowance = self._allowances.setdefault(model, _Allowance(at=self._clock()))
            if len(self._lines) >= _MOST_WAITING:
                allowance.drop(self._clock())
            elif allowance.take(self._clock()):
                self._lines.append(Log(model, level, line))

    def taken(self) -> list[Log]:
        """What there is to send; from the loop."""
        if not self._lines and not self._allowances:
            return []
        with self._lock:
            lines, self._lines = list(self._lines), deque()
            due = self._clock() - _TELL_AFTER
            lines += [self._told(name) for name, a in self._allowances.items() if a.dropped and a.dropped_at <= due]
            return lines

    def ended(self, model: str) -> list[Log]:
        """What there is to send now that a model is gone from this worker."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Stream):
                stream.finish()
        lines = self.taken()
        with self._lock:
            if model in self._allowances and self._allowances[model].dropped:
                lines.append(self._told(model))
            self._allowances.pop(model, None)
        return lines

    def _told(self, model: str) -> Log:
        allowance = self._allowances[model]
        dropped, allowance.dropped = allowance.dropped, 0
        text = f"{dropped} lines are left out here: a model may write {LINES_PER_SECOND} lines per second"
        return Log(model, "warning", text)


def sendable(text: str, longest: int) -> str:
    """What a message can carry of a text: at most so many characters, and none that UTF-8 does not have, as they come
    from file names."""
    if len(text) > longest:
        text = text[:longest] + "…"
    return text.encode("utf-8", "backslashreplace").decode()


class _Partial(threading.local):
    """The beginning of a line, in each thread."""

    model = ""
    text = ""


class _Stream(io.TextIOBase):
    """In place of `sys.stdout` or `sys.stderr`."""

    def __init__(self, capture: Capture, original: TextIO, level: str) -> None:
        self._capture, self._original, self._level = capture, original, level
        self._partial = _Partial()

    def write(self, text: str, /) -> int:
        model = self._capture.owner()
        partial = self._partial
        if partial.text and partial.model != model:
            self.finish()
        if not model:
            return self._original.write(text)
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        *lines, rest = text.split("\n")
        for line in lines:
            self._capture.write(model, self._level, (partial.text + line).removesuffix("\r"))
            partial.text = ""
        partial.model = model
        partial.text = (partial.text + rest)[: LONGEST_LINE + 1]
        return len(text)

    def finish(self) -> None:
        """Send the beginning of a line that this thread has left."""
        partial = self._partial
        if partial.text:
            text, partial.text = partial.text, ""
            self._capture.write(partial.model, self._level, text)

    def flush(self) -> None:
        self._original.flush()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._original.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._original.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._original.errors

    @property
    def buffer(self) -> object:
        """Bytes go to the worker's own log file."""
        return self._original.buffer

    def close(self) -> None:
        """A model must not close the worker's output."""


class _Handler(logging.Handler):
    """For the root logger."""

    def __init__(self, capture: Capture, original: TextIO) -> None:
        super().__init__()
        self._capture, self._original = capture, original
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            model, text = self._capture.owner(), self.format(record)
            if not model:
                self._original.write(f"{record.levelname.lower()} {text}\n")
                self._original.flush()
                return
            for line in text.splitlines() or [""]:
                self._capture.write(model, record.levelname.lower(), line)
        except Exception:
            self.handleError(record)


def _mark_threads(capture: Capture) -> None:
    """Let each thread know which model started it: `ps.config` and the loop speak of whichever model runs now."""
    start = threading.Thread.start

    def marked(self: threading.Thread) -> None:
        setattr(self, _OWNER, capture.owner())
        start(self)

    threading.Thread.start = marked  # type: ignore[method-assign]
