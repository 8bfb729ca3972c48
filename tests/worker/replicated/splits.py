"""The leader of `leader.py` that also splits and merges executors, as a real one does with its plans."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from tests.worker.replicated.leader import MODEL, Executor, Leader, Seat

from penstock.exchange.replica import assignment as record
from penstock.exchange.replica.assignment import Assignment
from penstock.exchange.split import routing
from penstock.exchange.split.coordinator import Coordinator
from penstock.exchange.split.messages import Prepared, Settled, Staged
from penstock.exchange.split.routing import Phase, Routing
from penstock.worker.messages import Connected, Loaded, Release, Start


class Splitter(Leader):
    """`hold`: asked before each change of a record; while it says True the change waits for `go_on`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.coordinators: dict[int, Coordinator] = {}
        self.hold: Callable[[Routing], bool] = lambda record: False
        self.waiting: dict[int, Routing] = {}
        self.history: list[Phase | None] = []
        self.on_write: Callable[[Routing], None] = lambda record: None
        """Called when a record was changed and the workers have been told."""

    # ---- what a real leader does ------------------------------------------------------------------------------------

    def table(self, stage: int) -> Routing:
        return self.routings.get(stage) or routing.first(self.counts[stage])

    def parties(self, stage: int) -> set[str]:
        topology = next(m.topology for _, m in self.said if isinstance(m, Loaded))
        near = {stage}
        for edge in topology.edges:
            if stage in (edge.source_stage, edge.target_stage):
                near |= {edge.source_stage, edge.target_stage}
        members = {f"{stage}.{index}" for index in range(300)}
        return {name for name in self.executors if int(name.partition(".")[0]) in near} - members

    async def split(self, stage: int, giver: int, groups: Iterable[int], standby: bool = True) -> str:
        """Begin to split; the newcomer's name."""
        old = self.table(stage)
        taker = 1 + max(*old.table, *(int(n.partition(".")[2]) for n in self.executors if n.startswith(f"{stage}.")))
        name = f"{stage}.{taker}"
        new = routing.began(old, giver, taker, groups, self.parties(stage) | {f"{stage}.{giver}"}, name)
        assert new is not None
        assert new.shift is not None
        names = [self._name() for _ in range(1 + standby)]
        first: Assignment | None = record.first(names[0], (1, self._count()))
        for other in names[1:]:
            assert first is not None
            assert self.mode is not None
            first = record.with_standby(first, other, self.mode)
        assert first is not None
        workers = [await self.launch() for _ in names]
        self.executors[name] = Executor(first, {n: Seat(n, w) for n, w in zip(names, workers, strict=True)})
        self.births[name] = new.shift.id[1]
        self._write(stage, new)
        loaded = self.count(Loaded)
        for worker in workers:
            await self._load(worker)
        await self.until(lambda: self.count(Loaded) == loaded + len(workers), "the newcomer loaded")
        await self.connect()
        for worker in workers:
            await self.until(
                lambda w=worker: any(i == w and isinstance(m, Connected) for i, m in self.said), "connected"
            )
            await self.workers[worker].send(Start(MODEL))
        return name

    async def merge(self, stage: int, giver: int, taker: int) -> None:
        old = self.table(stage)
        parties = self.parties(stage) | {f"{stage}.{giver}", f"{stage}.{taker}"}
        new = routing.began(old, giver, taker, old.groups(giver), parties)
        assert new is not None
        self._write(stage, new)
        await self.connect()

    def _write(self, stage: int, new: Routing) -> None:
        self.routings[stage] = new
        self.history.append(new.phase)
        if stage not in self.coordinators:
            self.coordinators[stage] = Coordinator(new)
        self.coordinators[stage].on_record(new)

    async def shifted(self, stage: int, report: Prepared | Staged | Settled) -> None:
        for at, coordinator in self.coordinators.items():
            if coordinator.record.shift is not None and coordinator.record.shift.id == report.shift:
                new = coordinator.on_report(report)
                if new is not None:
                    await self._next(at, new)

    async def _next(self, stage: int, new: Routing) -> None:
        if self.hold(new):
            self.waiting[stage] = new
            self.changed.set()
            return
        await self._apply(stage, new)

    async def go_on(self, stage: int) -> None:
        self.hold = lambda record: False
        coordinator = self.coordinators[stage]
        new = coordinator.next()
        if new is not None:
            await self._apply(stage, new)

    async def give_up(self, stage: int) -> None:
        new = self.coordinators[stage].give_up()
        assert new is not None
        await self._apply(stage, new)

    async def _apply(self, stage: int, new: Routing) -> None:
        old = self.routings[stage]
        self._write(stage, new)
        gone = ""
        if new.shift is None and old.shift is not None:
            if old.phase is Phase.ABANDONED:
                gone = old.shift.newcomer
            elif old.shift.retires:
                gone = f"{stage}.{old.shift.giver}"
        if gone:
            await self.drop(gone)
        await self.connect()
        self.on_write(new)

    async def drop(self, name: str) -> None:
        from tests.worker.replicated.leader import identity

        executor = self.executors.pop(name)
        for seat in executor.seats.values():
            if self.alive[seat.worker]:
                with contextlib.suppress(Exception):
                    await self.workers[seat.worker].send(Release(MODEL, [identity(name)]))

    def describe(self) -> str:
        shifts = [
            f"{stage}: {c.record.phase} {c.record.shift} prepared={c.prepared} staged={c.staged} settled={c.settled}"
            for stage, c in self.coordinators.items()
        ]
        return "\n".join([super().describe(), *shifts])

    def over(self, stage: int) -> bool:
        """No shift is under way, and there has been one."""
        return stage in self.routings and self.routings[stage].shift is None


@contextlib.asynccontextmanager
async def splitting(*arguments: Any, **options: Any) -> AsyncIterator[Splitter]:
    async with Splitter(*arguments, **options) as leader:
        yield leader
