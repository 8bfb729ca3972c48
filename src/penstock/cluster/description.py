"""What a flow looks like, found out in a throw-away process, so that no code of the author runs in this one."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import msgspec

from penstock.errors import FlowError
from penstock.flow.graph import Topology

_ANSWER_LIMIT = 16 * 2**20


class _Refusal(msgspec.Struct):
    error: str


async def describe(
    target: str, config: dict[str, Any] | None = None, timeout: float = 60.0, python: str = sys.executable
) -> Topology:
    """The topology of the flow at `target`. Raises `FlowError` with the error that the author would see, also when the
    flow is not built after `timeout` seconds."""
    process = await asyncio.create_subprocess_exec(
        python, "-P", "-m", "penstock.worker.describe", target, msgspec.json.encode(config or {}).decode(),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        limit=_ANSWER_LIMIT, process_group=0,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout):
            out, err = await process.communicate()
    except TimeoutError:
        raise FlowError(
            None,
            f"the flow at {target!r} was not built after {timeout:g} s",
            remedy="building a flow must not do the work itself: look for loops or connections at import time",
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        if process.returncode == 0:
            return msgspec.json.decode(out, type=Topology)
        refusal = msgspec.json.decode(out, type=_Refusal)
    except msgspec.MsgspecError:
        words = err.decode(errors="replace").strip()[-2000:]
        raise FlowError(
            None,
            f"importing {target!r} ended the interpreter ({_ending(process.returncode)})"
            + (f"; its last words were:\n{words}" if words else ""),
            remedy="a flow's file only says what the flow is; work belongs into its steps",
        ) from None
    raise FlowError(None, refusal.error)


def _ending(status: int | None) -> str:
    """An exit status for people."""
    if status is not None and status < 0:
        return signal.Signals(-status).name
    return f"status {status}"
