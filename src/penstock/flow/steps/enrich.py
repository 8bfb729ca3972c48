"""`enrich`: an asynchronous function over every record, several calls at a time, results in the order of the input.

The calls run on one event loop in a thread of the operator, started with the first record and ended by `close`. All
results leave from the executor's own thread, in `process`, `poll` and `drain`; watermarks keep their place among them.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from penstock import codec
from penstock.errors import FlowError, StepError
from penstock.flow.batch import Batch, Rows, as_rows
from penstock.flow.draws import Draws
from penstock.flow.graph import Partitioning, Step
from penstock.flow.operator import Operator, StepContext

__all__ = ["Enrich", "EnrichOperator"]

WAITING_BATCHES = 4
"""`process` waits for results before it accepts more batches than these."""
_GRACE = 10.0
"""Seconds that waiting may last beyond what the calls themselves may take."""
_WAITING = object()


@dataclass(frozen=True)
class Enrich(Step):
    """Emit what `await fn(record)` gives for each record, at most `concurrency` calls at a time per executor. A call
    that takes longer than `timeout` seconds counts as failed, with a `TimeoutError`."""

    kind: ClassVar[str] = "enrich"

    fn: Callable[[Any], Awaitable[Any]] | None = None
    concurrency: int = 64
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise FlowError(
                self.name, f"{self.fn!r} is not a function", remedy="give an async function", site=self.site
            )
        if self.concurrency < 1 or self.timeout <= 0:
            raise FlowError(
                self.name, "concurrency must be at least 1 and timeout more than 0 seconds", remedy=None, site=self.site
            )

    def operator(self, ctx: StepContext) -> EnrichOperator:
        assert self.fn is not None
        ctx.site = ctx.site or self.site
        return EnrichOperator(ctx, self.fn, self.concurrency, self.timeout)

    def partitioning(self, inputs: tuple[Partitioning, ...]) -> Partitioning:
        return Partitioning.NONE


class _Calls:
    """One batch under way: a slot per record, filled from the loop's thread, emptied from the executor's."""

    __slots__ = ("lane", "records", "results", "rows", "sent")

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.records = rows.records()
        self.results: list[Any] = [_WAITING] * len(rows)
        self.sent = 0

    def ready(self) -> int:
        """The end of the results that are complete from `sent` on."""
        end = self.sent
        while end < len(self.results) and self.results[end] is not _WAITING:
            end += 1
        return end


@dataclass(slots=True)
class _Failure:
    error: Exception


class EnrichOperator(Operator):
    """Keeps batches and watermarks in one queue; its head leaves as soon as it is complete."""

    def __init__(self, ctx: StepContext, fn: Callable[[Any], Awaitable[Any]], concurrency: int, timeout: float) -> None:
        super().__init__(ctx)
        self._fn, self._concurrency, self._timeout = fn, concurrency, timeout
        self._queue: deque[_Calls | tuple[int, int]] = deque()
        self._batches = 0
        self._pending = 0
        self._progress = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._todo: deque[tuple[_Calls, int]] = deque()
        self._callers: set[asyncio.Task[None]] = set()
        self._stopping: asyncio.Task[None] | None = None

    def process(self, port: int, batch: Batch) -> None:
        if self.ctx.draws is not None:
            self._process_logged(_Calls(as_rows(batch)), self.ctx.draws)
            return
        self.poll()
        self._wait(lambda: self._batches < WAITING_BATCHES)
        calls = _Calls(as_rows(batch))
        self._queue.append(calls)
        self._batches += 1
        self._pending += len(calls.records)
        self._running_loop().call_soon_threadsafe(self._begin, calls)

    def advance(self, port: int, lane: int, watermark: int) -> None:
        if self._queue:
            self._queue.append((lane, watermark))
        else:
            self.out.advance(lane, watermark)

    def poll(self) -> None:
        self._progress.clear()
        while self._queue:
            head = self._queue[0]
            if isinstance(head, tuple):
                self._queue.popleft()
                self.out.advance(*head)
                continue
            done = head.ready()
            if done > head.sent:
                begin, head.sent = head.sent, done
                self._pending -= done - begin
                self._emit(head, begin, done)
            if head.sent < len(head.results):
                return
            self._queue.popleft()
            self._batches -= 1

    def pending(self) -> int:
        return self._pending

    def drain(self) -> None:
        """Raises `StepError` when the calls do not come to an end in the time that their timeouts allow."""
        self.poll()
        self._wait(lambda: not self._queue)

    def close(self) -> None:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self._loop = self._thread = None
        loop.call_soon_threadsafe(self._cancel)
        thread.join(self._timeout + _GRACE)
        if thread.is_alive():
            raise StepError(
                self.ctx.step, f"step {self.ctx.step!r}: its function blocks the event loop and cannot be stopped"
            )

    def _emit(self, calls: _Calls, begin: int, end: int) -> None:
        rows = calls.rows
        values, times = calls.results[begin:end], None if rows.times is None else rows.times[begin:end]
        failed = {i for i, value in enumerate(values) if type(value) is _Failure}
        for i in sorted(failed):
            self.ctx.on_error(self.ctx, calls.records[begin + i], values[i].error)
        if failed:
            times = None if times is None else [time for i, time in enumerate(times) if i not in failed]
            values = [value for i, value in enumerate(values) if i not in failed]
        if values:
            self.out.send(rows.derive(values, times=times))

    def _process_logged(self, calls: _Calls, draws: Draws) -> None:
        """In a replicated executor: the batch waits for its calls, and a standby gets their results from the log."""

        def ask() -> bytes:  # as bytes: what the author does to the results later must not change the log
            self._running_loop().call_soon_threadsafe(self._begin, calls)
            self._wait(lambda: calls.ready() == len(calls.results))
            failed = {
                i: f"{type(r.error).__name__}: {r.error}" for i, r in enumerate(calls.results) if type(r) is _Failure
            }
            known = [None if i in failed else result for i, result in enumerate(calls.results)]
            return codec.dumps([known, failed])

        calls.results, failed = codec.loads(draws.draw("enrich", ask))
        for i, text in failed.items():
            calls.results[i] = _Failure(RuntimeError(text))
        self._emit(calls, 0, len(calls.results))

    def _wait(self, enough: Callable[[], bool]) -> None:
        """Pass results on until `enough()`. The deadline grows with what is pending, and starts again at every step
        forward, because each call has a timeout of its own."""
        while not enough():
            if not self._progress.wait(self._timeout + _GRACE):
                raise StepError(
                    self.ctx.step,
                    f"step {self.ctx.step!r}: no call came back within {self._timeout + _GRACE:g} s; "
                    "does the function block without await?",
                    site=self.ctx.site,
                )
            self.poll()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._run, args=(self._loop,), name=f"penstock-enrich-{self.ctx.step}", daemon=True
            )
            self._thread.start()
        return self._loop

    # What follows runs in the loop's thread.

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    def _begin(self, calls: _Calls) -> None:
        self._todo.extend((calls, i) for i in range(len(calls.records)))
        loop = asyncio.get_running_loop()
        for _ in range(min(self._concurrency - len(self._callers), len(self._todo))):
            self._callers.add(loop.create_task(self._call_all()))

    async def _call_all(self) -> None:
        while self._todo:
            calls, i = self._todo.popleft()
            calls.results[i] = await self._call(calls.records[i])
            if not self._progress.is_set():
                self._progress.set()
                self.ctx.wake()
        # At once, not when the task is done: `_begin` must not count on a caller that will take nothing more.
        task = asyncio.current_task()
        if task is not None:
            self._callers.discard(task)

    async def _call(self, record: Any) -> Any:
        try:
            async with asyncio.timeout(self._timeout) as limit:
                return await self._fn(record)
        except TimeoutError as error:
            if limit.expired():
                return _Failure(TimeoutError(f"no answer within {self._timeout:g} s"))
            return _Failure(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return _Failure(RuntimeError("the function was cancelled from within"))
        except Exception as error:
            return _Failure(error)

    def _cancel(self) -> None:
        self._todo.clear()
        for caller in self._callers:
            caller.cancel()
        self._stopping = asyncio.get_running_loop().create_task(self._stop())

    async def _stop(self) -> None:
        await asyncio.gather(*list(self._callers), return_exceptions=True)
        asyncio.get_running_loop().stop()
