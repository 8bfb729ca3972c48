"""Carries out what `converge` decides: the models on this node, in its workers, and what Redis is told about them.

Everything here runs in the event loop without waiting, except `flush`, so no step is interleaved with another.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from penstock.clock import Clock
from penstock.cluster import orders
from penstock.cluster.bus import Bus
from penstock.cluster.checkpoint_parts import Parts
from penstock.cluster.checkpoint_places import Places, kept
from penstock.cluster.converge import converge
from penstock.cluster.event_log import SAID, EventLog
from penstock.cluster.hosted import Hosted, Pending, Place, with_report
from penstock.cluster.hosting import (
    ConnectModel,
    Forget,
    HandOver,
    Here,
    LoadModel,
    Phase,
    Pool,
    ReleaseReplicas,
    ReportConnected,
    StartModel,
    StopModel,
)
from penstock.cluster.metrics import Metering
from penstock.cluster.plan import GONE, SILENT, ModelState, Plan, Report, RunEntry, executor_id, executor_of
from penstock.cluster.silence import Silence
from penstock.cluster.workers import Workers
from penstock.settings import RunSettings
from penstock.worker.messages import (
    Alarmed,
    Checkpointed,
    CheckpointFailed,
    Collected,
    Epoch,
    Failed,
    Finished,
    Handover,
    Loaded,
    Log,
    Message,
    Metrics,
    Promoted,
    Release,
    Released,
    Reported,
    Retired,
    Running,
    Start,
    Stop,
    Stopped,
)

_HAND_OVER_AGAIN = 1.0
"""Seconds after which a primary is told once more to hand over."""
_LOOK_AGAIN = 0.1
"""Seconds between two looks at a model that is being stopped."""
RESULTS_KEPT = 1000
"""Records of a `collect` sink that a node remembers, per step."""


class Runner:
    """The models on this node. `place`: where the package of a digest is, `None`: not here."""

    def __init__(
        self,
        node: str,
        bus: Bus,
        events: EventLog,
        metering: Metering,
        clock: Clock,
        settings: RunSettings,
        wake: Callable[[], None],
        place: Callable[[str], Place | None],
    ) -> None:
        self._place = place
        self._node, self._bus, self._events, self._metering = node, bus, events, metering
        self._clock, self._settings, self._wake = clock, settings, wake
        self.workers: Workers
        self.places = Places(None, "")
        """Where durable checkpoints are."""
        self.parts = Parts(node, self)
        self.incarnation = 0
        """0: not a member; nothing may run."""
        self._hosts: dict[tuple[int, str], Hosted] = {}
        self._entries: dict[tuple[str, str], RunEntry] = {}
        """(model, executor) -> the latest report of this incarnation."""
        self._attempted: set[tuple[str, str, Epoch]] = set()
        self._pending: dict[str, Pending] = {}
        self._told_lost: dict[str, int] = {}
        self._models: Mapping[str, ModelState] = {}
        self._allowed: dict[str, int] = {}
        """model -> the generation whose plan may be carried out here."""
        self._lineage: tuple[str, ...] = ()
        self._restore: dict[str, Plan] = {}
        """Plans that Redis has lost and that run here."""
        self._removed = asyncio.Event()
        """Some model is gone from some worker."""
        self._results: dict[tuple[str, str], deque[Any]] = {}
        self._silence = Silence(bus.settings.silence)
        self._alarms: dict[tuple[str, str], str] = {}
        """(model, executor) -> the last one."""
        self.refused = 0
        """Plans that were older than the one that is carried out here."""

    # ---- for others -------------------------------------------------------------------------------------------------

    def worker_of(self, model: str, executor: str) -> int | None:
        """The worker that runs an executor here; with replicas, its primary."""
        plan = self.plan_of(model)
        record = None if plan is None else plan.records.get(executor)
        place = executor if record is None else record.primary
        for host in self._hosts.values():
            if host.model == model and place in host.executors and host.up:
                told = record is None or host.primaries.get(executor) == place
                return host.worker if told else None
        return None

    def workers_of(self, model: str, executors: set[str]) -> list[int]:
        """The workers that run any of these executors here."""
        return sorted({w for executor in executors if (w := self.worker_of(model, executor)) is not None})

    def holding(self, model: str) -> list[int]:
        """See `checkpoint_parts.Hosting`, as for the next two."""
        return sorted(h.worker for h in self._hosts.values() if h.model == model and h.up)

    def plan_of(self, model: str) -> Plan | None:
        """The plan that is carried out here."""
        state = self._models.get(model)
        return None if state is None else state.plan

    def post(self, worker: int, message: Message) -> None:
        """Send a message to a worker."""
        self.workers.post(worker, message)

    def results(self, model: str, step: str | None, limit: int) -> list[Any]:
        """The latest records of `collect` sinks here."""
        found = [r for (name, s), kept in self._results.items() if name == model and step in (None, s) for r in kept]
        return found[-limit:] if limit > 0 else []

    # ---- membership and the catalogue -------------------------------------------------------------------------------

    def joined(self, incarnation: int) -> None:
        """This node has a lease."""
        self.incarnation = incarnation
        self.workers.refill()

    async def fence(self, grace: float = 0.0) -> None:
        """This node has no lease: nothing may run any more."""
        self.incarnation = 0
        for worker, model in list(self._hosts):
            self._metering.unloaded(worker, model)
        self._hosts.clear()
        self._entries.clear()
        self._attempted.clear()
        self._pending.clear()
        self._told_lost.clear()
        self._allowed.clear()
        self._restore.clear()
        self.parts.forget()
        self._removed.set()
        await self.workers.stop_all(grace)

    def allow(self, model: str, generation: int) -> None:
        """The catalogue says that the model is online: plans for this generation may be carried out."""
        self._allowed[model] = generation
        self._wake()

    async def withdraw(self, model: str) -> None:
        """The catalogue says that the model is not online: stop what runs of it here, and wait until it is gone."""
        self._allowed.pop(model, None)
        self._restore.pop(model, None)
        while hosts := [hosted for hosted in self._hosts.values() if hosted.model == model]:
            for hosted in hosts:
                if hosted.phase is not Phase.STOPPING:
                    self._stop(hosted)
            self._expire()
            self._removed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN):
                    await self._removed.wait()

    # ---- desired against observed -----------------------------------------------------------------------------------

    def apply(self, lineage: tuple[str, ...], seen: Mapping[str, ModelState]) -> None:
        """Do what has to be done now. Without a lineage Redis knows nothing: what runs goes on as it is."""
        if not self.incarnation or not lineage:
            return
        if lineage != self._lineage:
            self._lineage = lineage
            self._tell_again()
        models = {name: self._permitted(state) for name, state in seen.items()}
        for hosted in self._hosts.values():
            if _number_again(self._models.get(hosted.model), models.get(hosted.model)):
                hosted.connected = hosted.knows = 0
        self._models = models
        self._expire()
        places = {
            (name, upgraded): self._place(digest)
            for name, state in models.items()
            if state.plan is not None
            for upgraded, digest in orders.packages(state.plan)
        }
        here = Here(
            self._node,
            self.incarnation,
            [hosted.host() for hosted in self._hosts.values()],
            self.workers.groups(),
            {home: _pool(home[0], place) for home, place in places.items() if place is not None},
            self._attempted,
        )
        for action in converge(here, models):
            match action:
                case LoadModel():
                    self._load(action)
                case StopModel():
                    self._stop(self._hosts[action.worker, action.model])
                case ConnectModel():
                    self._connect(action, models[action.model])
                case ReleaseReplicas():
                    self._release(self._hosts[action.worker, action.model], action.replicas)
                case StartModel():
                    self.workers.post(action.worker, Start(action.model))
                case HandOver():
                    self._hand_over(action)
                case ReportConnected():
                    self._pending_of(action.model).connected = action.revision
                case Forget():
                    for executor in action.executors:
                        self._say(action.model, executor, None)
        self.parts.follow(models)
        self._tidy(models)

    def _permitted(self, state: ModelState) -> ModelState:
        """What counts here: no plan that the catalogue does not allow; the present plan although Redis has lost it, or
        shows an earlier one: because it has fallen back, because another node has brought that back, or because this
        view was under way for long."""
        name, plan = state.entry.name, state.plan
        allowed = self._allowed.get(name)
        known = self._models.get(name)
        running = known.plan if known is not None else None
        hosted = any(hosted.model == name for hosted in self._hosts.values())
        if plan is not None and not (hosted and running is not None and _earlier(plan, running)):
            self._restore.pop(name, None)
            return state if plan.generation == allowed else msgspec.structs.replace(state, plan=None)
        if running is None or state.entry.error or not running.generation == allowed == state.entry.generation:
            return state if plan is None else msgspec.structs.replace(state, plan=None)
        if not hosted:
            return state
        self.refused += plan is not None and name not in self._restore
        self._restore[name] = running
        return msgspec.structs.replace(state, plan=running)

    def _tell_again(self) -> None:
        """Redis has lost what it was told."""
        self._told_lost.clear()
        for (model, executor), entry in self._entries.items():
            self._pending_of(model).executors.setdefault(executor, entry)

    def _load(self, action: LoadModel) -> None:
        plan = self._models[action.model].plan
        assert plan is not None
        place = self._place(orders.package(plan, action.executors))
        assert place is not None
        group = action.model.partition("/")[0]
        worker = action.worker if action.worker is not None else self.workers.acquire(group, place.environment)
        hosted = Hosted(worker, action.model, action.epoch, frozenset(action.executors), since=self._clock.monotonic())
        self._hosts[worker, action.model] = hosted
        self._attempted |= {(action.model, executor, action.epoch) for executor in action.executors}
        silence, url = self._bus.settings.silence, self.checkpoint_url(action.model, plan.generation)
        self.workers.post(
            worker,
            orders.load(plan, action.executors, action.epoch, place.target, self._settings, silence, url),
        )

    def checkpoint_url(self, model: str, generation: int) -> str | None:
        """Where the durable checkpoints of a generation are; `None`: it has none."""
        if not kept(self._models[model].entry.recovery):
            return None
        return self.places.url(self._lineage, model, generation)

    def _connect(self, action: ConnectModel, state: ModelState) -> None:
        hosted = self._hosts[action.worker, action.model]
        hosted.connected = action.revision
        if action.complete:
            hosted.knows = action.revision
        message = orders.connect(state)
        hosted.primaries = {executor: record.primary for executor, record in message.records.items()}
        self.workers.post(action.worker, message)

    def _release(self, hosted: Hosted, replicas: tuple[str, ...]) -> None:
        new = [name for name in replicas if name in hosted.executors and name not in hosted.releasing]
        if new:
            hosted.releasing |= set(new)
            executors = [executor_id(executor_of(name)) for name in new]
            self.workers.post(hosted.worker, Release(hosted.model, executors))

    def _hand_over(self, action: HandOver) -> None:
        hosted, now = self._hosts[action.worker, action.model], self._clock.monotonic()
        if now >= hosted.handed.get(action.standby, 0.0) + _HAND_OVER_AGAIN:
            hosted.handed[action.standby] = now
            self.workers.post(action.worker, Handover(action.model, executor_id(action.executor), action.standby))

    def _stop(self, hosted: Hosted) -> None:
        hosted.phase, hosted.since = Phase.STOPPING, self._clock.monotonic()
        self.workers.post(hosted.worker, Stop(hosted.model))
        if hosted.worker in self._silence.silent:
            self.workers.kill(hosted.worker)

    def _expire(self) -> None:
        """Workers that do not answer in time are killed; what follows is the same as when they die."""
        settings = self._bus.settings
        limits = {Phase.LOADING: 2 * settings.worker_start, Phase.STOPPING: settings.request}
        now = self._clock.monotonic()
        for hosted in list(self._hosts.values()):
            if now > hosted.since + limits.get(hosted.phase, float("inf")):
                self.workers.kill(hosted.worker)

    def _tidy(self, models: Mapping[str, ModelState]) -> None:
        planned = {name for name, state in models.items() if state.plan is not None}
        for name in {model for model, _ in self._results} - set(models):
            self._results = {key: kept for key, kept in self._results.items() if key[0] != name}
        for name in planned:
            count = self._metering.lost(name)
            if count != self._told_lost.get(name, 0):
                self._pending_of(name).lost = self._told_lost[name] = count
        hosted = {model for _, model in self._hosts}
        for name in set(self._told_lost) - planned - hosted:
            del self._told_lost[name]
        for name in {model for model, _, _ in self._attempted} - planned - hosted:
            self._metering.forget(name)
            self._alarms = {key: text for key, text in self._alarms.items() if key[0] != name}
            self._attempted = {attempt for attempt in self._attempted if attempt[0] != name}

    # ---- what workers say -------------------------------------------------------------------------------------------

    def on_message(self, worker: int, message: Message) -> None:
        """See `WorkerEvents`."""
        if self._silence.heard(worker, self._clock.monotonic()):
            self._speaks(worker, "running")
        model = getattr(message, "model", "")
        hosted = self._hosts.get((worker, model))
        if hosted is None:
            return
        match message:
            case Metrics():
                self._metering.feed(worker, message)
                return
            case Checkpointed() | CheckpointFailed():
                self.parts.heard(message)
                return
            case Collected():
                self._results.setdefault((model, message.step), deque(maxlen=RESULTS_KEPT)).extend(message.records)
                return
            case Log():
                self._events.say("model.log", message.text, model=model, level=message.level, stream=SAID)
                return
            case Loaded():
                self._advance(hosted, Phase.LOADING, Phase.LOADED, "loaded")
            case Running():
                self._advance(hosted, Phase.LOADED, Phase.STARTED, "running")
            case Finished():
                if (finished := hosted.place(str(message.executor))) is not None:
                    self._entry(hosted, finished, "finished")
            case Reported():
                self._reported(message)
            case Promoted():
                text = f"executor {message.executor} of {model} goes on on node {self._node} after "
                text += f"{message.pause * 1000:,.0f} ms"
                self._events.say("executor.promoted", text, model=model)
                if (known := self._entries.get((model, message.replica))) is not None:
                    self._say(model, message.replica, msgspec.structs.replace(known, pause=message.pause))
            case Alarmed():
                text = f"executor {message.executor} of {model}: {message.text}"
                if self._alarms.get((model, str(message.executor))) != text:  # replicas say it until it is over
                    self._alarms[model, str(message.executor)] = text
                    self._events.say("executor.alarm", text, model=model, level="error")
            case Retired():
                self._release(hosted, (message.replica,))
            case Released():
                self._released(hosted, message)
            case Failed():
                self._failed(hosted, message)
            case Stopped():
                self._remove(hosted, "it was stopped here")
        self._wake()

    def on_gone(self, worker: int, reason: str) -> None:
        """See `WorkerEvents`."""
        for hosted in [hosted for hosted in self._hosts.values() if hosted.worker == worker]:
            names = ", ".join(sorted(hosted.executors))
            text = f"{reason}; it ran executors {names} of {hosted.model}"
            self._events.say("worker.lost", text, model=hosted.model, level="warning")
            self._remove(hosted, reason)
        self._metering.gone(worker)
        self._wake()

    def look_for_silence(self) -> None:
        """Replicas whose workers say nothing: the leader has to know, others can take over. To be called
        `silence.LOOKS` times in `ClusterSettings.silence`."""
        now = self._clock.monotonic()
        watched = {
            hosted.worker
            for hosted in self._hosts.values()
            if hosted.phase is Phase.STARTED and self._replicated(hosted)
        }
        for worker in self._silence.look(watched, now):
            self._speaks(worker, SILENT)
            self._wake()
        for worker, since in self._silence.silent.items():
            if now > since + self._bus.settings.request:
                self.workers.kill(worker)

    def _replicated(self, hosted: Hosted) -> bool:
        plan = self.plan_of(hosted.model)
        return plan is not None and plan.replicated

    def _speaks(self, worker: int, state: str) -> None:
        """All replicas of a worker are silent, or are so no longer."""
        for hosted in self._hosts.values():
            for place in hosted.executors if hosted.worker == worker else ():
                known = self._entries.get((hosted.model, place))
                if known is not None and known.state in ("running", SILENT) and self._replicated(hosted):
                    self._entry(hosted, place, state)

    def _reported(self, message: Reported) -> None:
        known = self._entries.get((message.model, message.replica))
        report = message.report
        if known is not None and isinstance(report, Report) and report not in known.reports:
            reports = with_report(known.reports, report)
            self._say(message.model, message.replica, msgspec.structs.replace(known, reports=reports))

    def _released(self, hosted: Hosted, message: Released) -> None:
        gone = {name for name in hosted.releasing if executor_id(executor_of(name)) in message.executors}
        hosted.executors, hosted.releasing = hosted.executors - gone, hosted.releasing - gone
        self._vacated(hosted, gone, "it was replaced")
        if not hosted.executors:
            self._remove(hosted, "it was stopped here")

    def _advance(self, hosted: Hosted, before: Phase, after: Phase, state: str) -> None:
        if hosted.phase is not before:
            return
        hosted.phase, hosted.since = after, self._clock.monotonic()
        for executor in hosted.executors:
            known = self._entries.get((hosted.model, executor))
            if known is None or known.epoch != hosted.epoch or known.state != "finished":
                self._entry(hosted, executor, state)

    def _failed(self, hosted: Hosted, message: Failed) -> None:
        text = message.error if not message.trace else f"{message.error}\n{message.trace}"
        self._events.say("model.log", text, model=hosted.model, level="error", stream=SAID)
        if hosted.phase is not Phase.STOPPING:
            loading = hosted.phase is Phase.LOADING
            for executor in hosted.executors:
                self._entry(hosted, executor, "failed", message.error, message.kind, loading)
            self._stop(hosted)

    def _remove(self, hosted: Hosted, reason: str) -> None:
        """The executors of `hosted` are gone. If the plan still wants them, the leader has to know."""
        del self._hosts[hosted.worker, hosted.model]
        self.parts.gone(hosted.worker, hosted.model, hosted.executors)
        self._removed.set()
        self._vacated(hosted, hosted.executors, reason)
        self._metering.unloaded(hosted.worker, hosted.model)
        if not any(worker == hosted.worker for worker, _ in self._hosts):
            self.workers.release(hosted.worker)

    def _vacated(self, hosted: Hosted, places: Collection[str], reason: str) -> None:
        plan = self.plan_of(hosted.model)
        for place in places:
            assigned = plan.seats.get(place) if plan is not None else None
            known = self._entries.get((hosted.model, place))
            if assigned is None or assigned.epoch != hosted.epoch:
                self._say(hosted.model, place, None)
            elif known is None or known.epoch != hosted.epoch or known.state not in GONE:
                self._entry(hosted, place, "lost", reason, "WorkerError")

    # ---- telling Redis ----------------------------------------------------------------------------------------------

    def _pending_of(self, model: str) -> Pending:
        return self._pending.setdefault(model, Pending())

    def _entry(
        self, hosted: Hosted, executor: str, state: str, error: str = "", kind: str = "", loading: bool = False
    ) -> None:
        handle = self.workers.handle(hosted.worker)
        known = self._entries.get((hosted.model, executor))
        entry = RunEntry(
            epoch=hosted.epoch,
            node=self._node,
            incarnation=self.incarnation,
            state=state,
            endpoint="" if handle is None else handle.endpoint,
            server_key="" if handle is None else handle.server_key,
            pid=0 if handle is None else handle.pid,
            error=error,
            kind=kind,
            loading=loading,
            keys=self._metering.keys(hosted.worker, hosted.model, executor_of(executor)) if state in GONE else 0,
            reports=known.reports if known is not None and known.epoch == hosted.epoch else [],
            pause=known.pause if known is not None and known.epoch == hosted.epoch else 0.0,
        )
        self._say(hosted.model, executor, entry)

    def _say(self, model: str, executor: str, entry: RunEntry | None) -> None:
        if entry is None:
            self._entries.pop((model, executor), None)
        else:
            self._entries[model, executor] = entry
        self._pending_of(model).executors[executor] = entry

    async def flush(self) -> bool:
        """Tell Redis; whether there was anything to tell. Raises `BusDown`; nothing is forgotten then."""
        told = False
        while self._restore and self.incarnation:
            told = await self._bring_back(*self._restore.popitem()) or told
        while self._pending and self.incarnation:
            model, pending = next(iter(self._pending.items()))
            del self._pending[model]
            try:
                heard = await self._tell(model, pending)
            except BaseException:
                self._merge(model, pending)
                raise
            if not heard:  # not a member (yet): a catalogue that was just rebuilt has none
                self._merge(model, pending)
                break
            told = True
        return told

    async def _bring_back(self, model: str, plan: Plan) -> bool:
        """Put a plan that runs here into Redis again, unless there is a later one."""
        names = ("members", "models", f"plan:{model}", "counters", "rev", "log", "bell")
        code = await self._bus.script(
            "plan_restore",
            [self._bus.key(name) for name in names],
            [
                self._node, self.incarnation, model, plan.generation, plan.revision, msgspec.json.encode(plan),
                plan.latest.term,
            ],
        )  # fmt: skip
        return int(code) > 0

    def _merge(self, model: str, older: Pending) -> None:
        newer = self._pending_of(model)
        newer.executors = older.executors | newer.executors
        newer.connected = max(older.connected, newer.connected)
        newer.lost = newer.lost if newer.lost is not None else older.lost

    async def _tell(self, model: str, pending: Pending) -> bool:
        """Whether Redis has taken it; it does so from members alone."""
        flat: list[str | bytes] = []
        for executor, entry in pending.executors.items():
            flat += [executor, "" if entry is None else msgspec.json.encode(entry)]
        names = ("members", f"run:{model}", f"connected:{model}", f"lost:{model}", f"plan:{model}", "rev", "bell")
        code = await self._bus.script(
            "report",
            [self._bus.key(name) for name in names],
            [
                self._node,
                self.incarnation,
                pending.connected or "",
                "" if pending.lost is None else pending.lost,
                *flat,
            ],
        )
        return bool(int(code))


def _pool(model: str, place: Place) -> Pool:
    return model.partition("/")[0], place.environment.key


def _earlier(plan: Plan, running: Plan) -> bool:
    """Whether a plan for the same generation was made before the one that runs. Revisions do not tell: when Redis has
    lost its memory, so that a new leader counts anew."""
    return plan.generation == running.generation and plan.latest < running.latest


def _number_again(before: ModelState | None, after: ModelState | None) -> bool:
    """Whether another plan has a revision that there was already."""
    old = before.plan if before is not None else None
    new = after.plan if after is not None else None
    return old is not None and new is not None and new.revision <= old.revision and new != old
