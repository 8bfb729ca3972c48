"""Workers as child processes on this machine: a socket pair for control, `ipc` or `tcp` for data."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from penstock.cluster.launcher.protocol import WorkerSpec
from penstock.errors import WorkerError
from penstock.worker.control import SupervisorControl
from penstock.worker.messages import Message, Ready, Shutdown

_TAIL = 2000


class ProcessWorker:
    """A worker process and the stream to it."""

    def __init__(self, process: asyncio.subprocess.Process, control: SupervisorControl, ready: Ready) -> None:
        self._process, self._control, self.ready = process, control, ready

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def endpoint(self) -> str:
        return self.ready.endpoint

    @property
    def server_key(self) -> str:
        return self.ready.server_key

    async def send(self, message: Message) -> None:
        await self._control.send(message)

    async def messages(self) -> AsyncIterator[Message]:
        while (message := await self._control.receive()) is not None:
            yield message

    async def stop(self, grace: float = 5.0) -> int:
        return await _stop(self._process, self._control, grace)


async def _stop(process: asyncio.subprocess.Process, control: SupervisorControl, grace: float) -> int:
    """Ask, then kill; always reap and close."""
    try:
        await control.send(Shutdown())
    except WorkerError:
        pass
    try:
        return await asyncio.wait_for(process.wait(), grace)
    except TimeoutError:
        process.kill()
        return await process.wait()
    except BaseException:
        process.kill()
        raise
    finally:
        await control.close()


class ProcessLauncher:
    """Starts `python -m penstock.worker` as a child; the child dies with its parent."""

    async def start(self, spec: WorkerSpec, timeout: float = 20.0) -> ProcessWorker:
        """Start a worker and wait at most `timeout` seconds for it to be ready.

        Raises `WorkerError` with what the worker last wrote when it does not come up.
        """
        os.makedirs(spec.data_dir, mode=0o700, exist_ok=True)
        ours, theirs = socket.socketpair()
        log = None if spec.log_file is None else open(spec.log_file, "ab")  # noqa: SIM115, ASYNC230 - short, and closed below
        try:
            process = await asyncio.create_subprocess_exec(
                spec.python,
                *_arguments(spec, theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(),),
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
        control = await SupervisorControl.open(ours)
        try:
            first = await asyncio.wait_for(control.receive(), timeout)
        except TimeoutError:
            await _stop(process, control, grace=0.0)
            raise WorkerError(f"worker {spec.name} was not ready after {timeout:.0f} s{_last_words(spec)}") from None
        except BaseException:
            await _stop(process, control, grace=0.0)
            raise
        if not isinstance(first, Ready):
            status = await _stop(process, control, grace=1.0)
            raise WorkerError(f"worker {spec.name} ended with status {status} at its start{_last_words(spec)}")
        return ProcessWorker(process, control, first)


def _arguments(spec: WorkerSpec, control_fd: int) -> list[str]:
    arguments = ["-P", "-m", "penstock.worker", "--control-fd", str(control_fd), "--data-dir", spec.data_dir]
    arguments += ["--name", spec.name]
    if spec.bind is not None:
        arguments += ["--bind", spec.bind]
    return arguments


def _last_words(spec: WorkerSpec) -> str:
    """The end of the worker's log, for an error message."""
    if spec.log_file is None:
        return ""
    text = Path(spec.log_file).read_text("utf-8", "replace")[-_TAIL:].strip()
    return f"; its last output was:\n{text}" if text else ""
