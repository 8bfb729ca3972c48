"""Launching workers, behind one small interface: `process` on this machine, `ray` on a Ray cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from penstock.worker.messages import Message


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What kind of worker to start."""

    name: str
    """For people: shown by `ps` and in logs."""
    python: str
    """The interpreter to run (the group's environment)."""
    data_dir: str
    """A directory with mode 0700 for `ipc` sockets."""
    bind: str | None = None
    """An IP address for a `tcp` data socket instead of `ipc`."""
    log_file: str | None = None
    """Where the worker's own output goes; `None`: inherited."""
    capture_output: bool = False
    """What models print and log comes as `Log` messages, not as the worker's own output."""
    secrets: bool = False
    """Environment variables that look like secrets are passed on as well: for the author's own run."""


class WorkerHandle(Protocol):
    """One running worker, as seen by its supervisor."""

    @property
    def pid(self) -> int: ...

    @property
    def endpoint(self) -> str:
        """Where executors of this worker are reached."""
        ...

    @property
    def server_key(self) -> str:
        """The CURVE public key of a `tcp` endpoint; empty for `ipc`."""
        ...

    async def send(self, message: Message) -> None:
        """Hand a message over. Raises `WorkerError` when the worker is gone."""
        ...

    def messages(self) -> AsyncIterator[Message]:
        """What the worker says, until it is gone (then the iterator ends)."""
        ...

    async def stop(self, grace: float = 5.0) -> int:
        """Ask it to exit, kill it after `grace` seconds, reap it; its exit status (negative: the signal)."""
        ...


class Launcher(Protocol):
    """Starts workers."""

    async def start(self, spec: WorkerSpec, timeout: float) -> WorkerHandle:
        """Start a worker and wait until it is ready. Raises `WorkerError` with the worker's last output otherwise."""
        ...
