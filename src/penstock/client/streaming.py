"""Drivers of a push: the input is read while requests are under way, in threads or in tasks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from penstock.client.conversation import Answered, Begin, Call, Ended, Input, Step, Take
from penstock.client.feed import Feed
from penstock.client.sending import GRACE, PushResult

THREADS = 64
"""Requests of one push that can be under way at once."""
TURN = 256
"""Records of an input that are read before others on the loop have their turn."""


class _Happenings:
    """What happened, in the order in which it is told: answers before input, the end once."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.answers: deque[Answered | Exception] = deque()
        self._told = False

    def next(self, take: Take) -> Answered | Input | Ended | None:
        """What can be told now. Raises what a request has raised."""
        if self.answers:
            found = self.answers.popleft()
            if isinstance(found, Exception):
                raise found
            return found
        body = self.feed.take() if take.input else None
        if body is not None:
            return Input(body)
        if self.feed.ended and (take.input or self.feed.broken) and not self._told:
            self._told = True
            return Ended(self.feed.broken)
        return None

    def until(self, take: Take, end: float | None) -> float | None:
        """When to look again if nothing happens; monotonic."""
        due = self.feed.due if take.input else None
        return min((at for at in (due, end) if at is not None), default=None)


class _Closed(Exception):
    """Nobody waits for the end of this push."""


class BlockingPush:
    """A push whose input is read by the calling thread, so that it may be anything that belongs to this thread; the
    conversation and its requests have threads of their own. `request` does one of its other steps."""

    def __init__(self, feed: Feed, request: Callable[[Step], Any]) -> None:
        self._feed, self._request = feed, request
        self._happenings = _Happenings(feed)
        self._changed = threading.Condition()
        self._over = self._closed = False
        self._pool = ThreadPoolExecutor(THREADS + 1, "penstock-push")

    def run(
        self, talk: Callable[[Callable[[Step], Any]], PushResult], items: Iterable[Any], bodies: bool
    ) -> PushResult:
        """Drive a conversation by `talk(step)` while `items` are read. What the input raises ends the push: what is
        under way gets a short time, and a note on the error tells how much is acknowledged."""
        talking = self._pool.submit(self._talk, talk)
        try:
            self._read(items, bodies)
            return talking.result()
        except BaseException as error:
            if not (talking.done() and talking.exception() is error):
                self._leave(talking, error)
            raise
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _talk(self, talk: Callable[[Callable[[Step], Any]], PushResult]) -> PushResult:
        try:
            return talk(self._step)
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _read(self, items: Iterable[Any], bodies: bool) -> None:
        feed = self._feed
        for item in items:
            line = item if bodies else feed.encode(item)
            with self._changed:
                while feed.full and not self._over:
                    self._changed.wait()
                if self._over:
                    return
                begun = feed.due is not None
                (feed.add_body if bodies else feed.add)(line)
                if feed.full or not begun:
                    self._changed.notify_all()
        with self._changed:
            feed.end()
            self._changed.notify_all()

    def _leave(self, talking: Future[PushResult], error: BaseException) -> None:
        with self._changed:
            self._feed.end(broken=True)
            self._changed.notify_all()
        with contextlib.suppress(Exception):
            _note(error, talking.result(GRACE + 1.0))
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _step(self, step: Step) -> Any:
        if self._closed:
            raise _Closed
        if isinstance(step, Begin):
            self._pool.submit(self._answer, step.tag, step.call)
            return None
        if isinstance(step, Take):
            return self._take(step)
        return self._request(step)

    def _answer(self, tag: Any, call: Call[Any]) -> None:
        try:
            found: Answered | Exception = Answered(tag, self._request(call))
        except Exception as error:
            found = error
        with self._changed:
            self._happenings.answers.append(found)
            self._changed.notify_all()

    def _take(self, take: Take) -> Answered | Input | Ended | None:
        end = None if take.seconds is None else time.monotonic() + take.seconds
        with self._changed:
            while not self._closed:
                found = self._happenings.next(take)
                if isinstance(found, Input):
                    self._changed.notify_all()
                now = time.monotonic()
                if found is not None or (end is not None and now >= end):
                    return found
                until = self._happenings.until(take, end)
                self._changed.wait(None if until is None else max(0.0, until - now))
        raise _Closed


class AwaitedPush:
    """The same in tasks. The input may be asynchronous as well."""

    def __init__(self, feed: Feed, request: Callable[[Step], Awaitable[Any]]) -> None:
        self._feed, self._request = feed, request
        self._happenings = _Happenings(feed)
        self._changed, self._room = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: Exception | None = None

    async def run(
        self,
        talk: Callable[[Callable[[Step], Awaitable[Any]]], Awaitable[PushResult]],
        items: Iterable[Any] | AsyncIterable[Any],
        bodies: bool,
    ) -> PushResult:
        """See `BlockingPush.run`."""
        reading = asyncio.create_task(self._read(items, bodies))
        try:
            result = await talk(self._step)
        finally:
            reading.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(reading, *self._tasks, return_exceptions=True)
        if self._failed is not None:
            _note(self._failed, result)
            raise self._failed
        return result

    async def _read(self, items: Iterable[Any] | AsyncIterable[Any], bodies: bool) -> None:
        try:
            if isinstance(items, AsyncIterable):
                async for item in items:
                    while self._feed.full:
                        await self._room_made()
                    self._add(item, bodies)
            else:
                for number, item in enumerate(items, 1):
                    while self._feed.full:
                        await self._room_made()
                    self._add(item, bodies)
                    if number % TURN == 0:
                        await asyncio.sleep(0)
            self._feed.end()
        except Exception as error:
            self._failed = error
            self._feed.end(broken=True)
        self._changed.set()

    async def _room_made(self) -> None:
        self._room.clear()
        await self._room.wait()

    def _add(self, item: Any, bodies: bool) -> None:
        feed = self._feed
        begun = feed.due is not None
        if bodies:
            feed.add_body(item)
        else:
            feed.add(feed.encode(item))
        if feed.full or not begun:
            self._changed.set()

    async def _step(self, step: Step) -> Any:
        if isinstance(step, Begin):
            task = asyncio.create_task(self._answer(step.tag, step.call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return None
        if isinstance(step, Take):
            return await self._take(step)
        return await self._request(step)

    async def _answer(self, tag: Any, call: Call[Any]) -> None:
        try:
            self._happenings.answers.append(Answered(tag, await self._request(call)))
        except Exception as error:
            self._happenings.answers.append(error)
        self._changed.set()

    async def _take(self, take: Take) -> Answered | Input | Ended | None:
        end = None if take.seconds is None else time.monotonic() + take.seconds
        while True:
            self._changed.clear()
            found = self._happenings.next(take)
            if isinstance(found, Input):
                self._room.set()
            now = time.monotonic()
            if found is not None or (end is not None and now >= end):
                return found
            until = self._happenings.until(take, end)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if until is None else max(0.0, until - now)):
                    await self._changed.wait()


def _note(error: BaseException, result: PushResult) -> None:
    if result.accepted:
        error.add_note(f"before that, {result.accepted:,} records were pushed and acknowledged")
