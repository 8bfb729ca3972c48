"""Questions to executors with replicas outlive a fail-over: they are asked again while there is time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from penstock.clock import Clock
from penstock.cluster.participation import Participation
from penstock.cluster.service import NotBegun, Unavailable
from penstock.cluster.view import View

T = TypeVar("T")
_AGAIN = 0.1
"""Seconds after which it is tried again at the latest."""


class Patience:
    """`known`: a view that shows the model running, if there is one. `deadline` in seconds."""

    def __init__(
        self, known: Callable[[str], Awaitable[View]], participation: Participation, clock: Clock, deadline: float
    ) -> None:
        self._known, self._participation = known, participation
        self._clock, self._deadline = clock, deadline

    async def ask(self, model: str, question: Callable[[View], Awaitable[T]], *, repeatable: bool = True) -> T:
        """The answer. What is not `repeatable` is asked again only if it surely was not begun. `model`: its full name.
        Raises what `question` raises, `Unavailable` of a model with replicas when the deadline is over."""
        until = self._clock.monotonic() + self._deadline
        while True:
            view, stamp = await self._known(model), self._participation.sight.stamp
            try:
                return await question(view)
            except Unavailable as error:
                state = view.models.get(model)
                replicated = state is not None and state.plan is not None and state.plan.replicated
                if not replicated or not (repeatable or isinstance(error, NotBegun)):
                    raise
                if (left := until - self._clock.monotonic()) <= 0:
                    raise
            await self._changed(stamp, min(left, _AGAIN))

    async def _changed(self, stamp: str, seconds: float) -> None:
        await self._participation.wait_for(lambda sight: sight.stamp != stamp, seconds)
