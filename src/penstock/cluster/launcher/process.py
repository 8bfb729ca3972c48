"""Workers as child processes on this machine: a socket pair for control, `ipc` or `tcp` for data."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from penstock.cluster.launcher.protocol import WorkerSpec
from penstock.cluster.variables import without_secrets
from penstock.errors import WorkerError
from penstock.worker.control import SupervisorControl
from penstock.worker.messages import Message, Ready, Shutdown

_TAIL = 2000
_CLOSING = 2.0
"""Seconds for closing the stream to a worker that is gone."""


class _Child:
    """A worker process, from its start to its end."""

    def __init__(self, process: asyncio.subprocess.Process, control: SupervisorControl) -> None:
        self.process, self.control = process, control
        self._group_killed = False

    async def stop(self, grace: float) -> int:
        """Ask, then kill; always reap and close."""
        try:
            if grace > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(grace):
                        with contextlib.suppress(WorkerError):
                            await self.control.send(Shutdown())
                        await self.process.wait()
            if self.process.returncode is None:
                self._kill()
            return await self.process.wait()
        finally:
            if not self._group_killed:  # once: later the number may be another group's
                self._group_killed = True
                self._kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSING):
                    await self.control.close()

    def _kill(self) -> None:
        """Kill the worker and what its models have started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


class ProcessWorker:
    """A worker that is ready, and the stream to it."""

    def __init__(self, child: _Child, ready: Ready) -> None:
        self._child, self.ready = child, ready

    @property
    def pid(self) -> int:
        return self._child.process.pid

    @property
    def endpoint(self) -> str:
        return self.ready.endpoint

    @property
    def server_key(self) -> str:
        return self.ready.server_key

    async def send(self, message: Message) -> None:
        await self._child.control.send(message)

    async def messages(self) -> AsyncIterator[Message]:
        while (message := await self._child.control.receive()) is not None:
            yield message

    async def stop(self, grace: float = 5.0) -> int:
        return await self._child.stop(grace)


class ProcessLauncher:
    """Starts `python -m penstock.worker` as a child; the child dies with its parent."""

    async def start(self, spec: WorkerSpec, timeout: float = 20.0) -> ProcessWorker:
        """Start a worker and wait at most `timeout` seconds for it to be ready.

        Raises `WorkerError` with what the worker last wrote when it does not come up.
        """
        child = await _spawned(spec)
        try:
            async with asyncio.timeout(timeout):
                first = await child.control.receive()
        except TimeoutError:
            await child.stop(0.0)
            raise WorkerError(f"worker {spec.name} was not ready after {timeout:.0f} s{_last_words(spec)}") from None
        except BaseException:
            await child.stop(0.0)
            raise
        if not isinstance(first, Ready):
            status = await child.stop(1.0)
            raise WorkerError(f"worker {spec.name} ended with status {status} at its start{_last_words(spec)}")
        return ProcessWorker(child, first)


async def _spawned(spec: WorkerSpec) -> _Child:
    """Start the process. Raises `WorkerError`; no descriptor is left open then."""
    try:
        os.makedirs(spec.data_dir, mode=0o700, exist_ok=True)
        log = None if spec.log_file is None else open(spec.log_file, "ab")  # noqa: SIM115, ASYNC230 - short, and closed below
    except OSError as error:
        raise WorkerError(f"worker {spec.name} could not be started: {error}") from error
    ours, theirs = socket.socketpair()
    try:
        process = await asyncio.create_subprocess_exec(
            spec.python,
            *_arguments(spec, theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(theirs.fileno(),),
            env=_variables(spec),
            process_group=0,  # Ctrl-C on the terminal is the supervisor's to handle, also while the worker starts
        )
    except OSError as error:
        ours.close()
        raise WorkerError(f"worker {spec.name} could not be started: {error}") from error
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        if log is not None:
            log.close()
    try:
        return _Child(process, await SupervisorControl.open(ours))
    except BaseException:
        ours.close()
        process.kill()
        await process.wait()
        raise


def _arguments(spec: WorkerSpec, control_fd: int) -> list[str]:
    arguments = ["-P", "-m", "penstock.worker", "--control-fd", str(control_fd), "--data-dir", spec.data_dir]
    arguments += ["--name", spec.name]
    if spec.bind is not None:
        arguments += ["--bind", spec.bind]
    if spec.capture_output:
        arguments.append("--capture")
    return arguments


def _variables(spec: WorkerSpec) -> dict[str, str]:
    """The worker's environment variables: another interpreter must not be led to the modules of this one."""
    variables = dict(os.environ) if spec.secrets else without_secrets()
    if spec.python != sys.executable:
        for name in ("PYTHONPATH", "PYTHONHOME"):
            variables.pop(name, None)
    return variables


def _last_words(spec: WorkerSpec) -> str:
    """The end of the worker's log, for an error message."""
    if spec.log_file is None:
        return ""
    try:
        text = Path(spec.log_file).read_bytes()[-4 * _TAIL :].decode(errors="replace")[-_TAIL:].strip()
    except OSError:
        return ""
    return f"; its last output was:\n{text}" if text else ""
