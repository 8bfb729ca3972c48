"""Ending tasks for sure. `asyncio.wait_for` before Python 3.12 (also inside libraries) can swallow a cancellation that
comes just when the awaited thing is done (CPython issue 86296), so one `cancel` is not enough."""

from __future__ import annotations

import asyncio
from typing import Any

_AGAIN_AFTER = 0.2


async def end(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel the tasks, again and again until each is done. Their results and exceptions are dropped."""
    pending = {task for task in tasks if task is not None}
    ended = list(pending)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN_AFTER)
    for task in ended:
        if not task.cancelled():
            task.exception()


def check_cancelled(before: int) -> None:
    """Raise `CancelledError` if this task was asked to end since it had been asked `before` times."""
    task = asyncio.current_task()
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError


def times_cancelled() -> int:
    """How often this task has been asked to end."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
