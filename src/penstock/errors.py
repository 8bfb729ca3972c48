"""Every error that Penstock raises on purpose.

PenstockError                 anything below; `str(error)` is one readable paragraph
├── UsageError                the caller asked for something impossible (CLI exit code 2, HTTP 4xx)
│   └── FlowError             a flow that cannot be built; names the step, the cause and the remedy
├── StepError                 the author's code raised while running; names step, record and source line
├── ConnectorError            a source or a sink cannot reach or use what it is connected to
├── CodecError                bytes or values that cannot be turned into each other
├── ExchangeError             a broken promise between two executors (checksum, epoch, sequence)
├── CheckpointError           a checkpoint that cannot be written, found or read
├── WorkerError               a worker process that died or did not answer in time
└── ClusterError              Redis, membership or another node is in the way of an operation
"""

from __future__ import annotations


class PenstockError(Exception):
    """The root. `remedy` says what to do; it is part of the message."""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message if remedy is None else f"{message}\n  -> {remedy}")
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), str(self)))


def _rebuild(kind: type[PenstockError], text: str) -> PenstockError:
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    error.message, error.remedy = text, None
    return error


class UsageError(PenstockError):
    """The caller asked for something that cannot be done as asked."""


class FlowError(UsageError):
    """A flow that cannot be built: which step, why, and what to do."""

    def __init__(self, step: str | None, cause: str, *, remedy: str | None = None, site: str | None = None) -> None:
        where = "" if step is None else f"step {step!r}: "
        at = "" if site is None else f" (at {site})"
        super().__init__(f"{where}{cause}{at}", remedy=remedy)
        self.step = step


class StepError(PenstockError):
    """The author's function raised while a record went through a step."""

    def __init__(self, step: str, message: str, *, record: str | None = None, site: str | None = None) -> None:
        super().__init__(message)
        self.step, self.record, self.site = step, record, site


class ConnectorError(PenstockError):
    """A source or sink cannot reach, read or write what it is connected to."""


class CodecError(PenstockError):
    """A value that cannot be encoded, or bytes that cannot be decoded."""


class ExchangeError(PenstockError):
    """A frame that breaks the protocol between two executors."""


class CheckpointError(PenstockError):
    """A checkpoint that cannot be written, found or read."""


class WorkerError(PenstockError):
    """A worker process that died, or did not answer before its deadline."""


class ClusterError(PenstockError):
    """Redis, membership or another node prevents an operation."""
