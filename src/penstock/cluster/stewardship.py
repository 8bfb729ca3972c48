"""What the leader does besides leading: plans for models. Decisions are made in `reconcile`."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from penstock.cluster.bus import Bus
from penstock.cluster.decisions import DropPlan, GiveUp, Later, Nothing, Sweep, Told, WritePlan
from penstock.cluster.metrics import HeldKeys
from penstock.cluster.plan import GONE, Failure, ModelState
from penstock.cluster.reconcile import decide
from penstock.cluster.view import View


class Steward:
    """Carries out the leader's decisions by scripts that check its term."""

    def __init__(self, bus: Bus, node: str, held: HeldKeys) -> None:
        self._bus, self._node, self._held = bus, node, held
        self._initial = bus.settings.balancing.initial
        self._met: tuple[str, ...] = ()
        """The lineage that was found when this node could not judge yet."""
        self._running_before = 0
        self.settled: Callable[[ModelState], bool] = lambda state: True
        """Whether `state.checkpoint` is what the store of checkpoints has; see `Keeper.settled`."""
        self.again_at: float | None = None
        """When something has to be decided again, Redis seconds."""
        self.refused = 0
        """Decisions that had no effect, because another node leads or the model has changed."""

    async def act(self, view: View, term: int, may_judge: bool) -> bool:
        """Decide about everything once; whether something was changed. Raises `BusDown`.

        `may_judge`: this node has been in touch with Redis for so long that whoever is missing is really gone. Until
        then nobody is taken for lost, and models that were online before are left to those that run them.
        """
        self._patience(view, may_judge)
        changed, self.again_at = False, None
        live = view.live() if may_judge else view.unjudged()
        for name, state in view.models.items():
            if not may_judge and state.plan is None and state.entry.generation <= self._running_before:
                continue
            if state.plan is not None and state.entry.desired == "online" and view.awaited(state.plan, may_judge):
                continue
            others, numbers = view.placed(but=name), view.numbers(but=name)
            decision = decide(state, live, term, view.now, others, numbers, self._initial)
            match decision:
                case Nothing():
                    pass
                case Later(at=at):
                    self.again_at = at if self.again_at is None else min(at, self.again_at)
                case _ if _rests_on_checkpoint(state, decision) and not self.settled(state):
                    pass  # the store is being asked, and a later view tells
                case _:
                    changed = await self._carry_out(name, state, decision, term) or changed
        return changed

    def _patience(self, view: View, may_judge: bool) -> None:
        """Remember up to which revision models may be running without a plan that Redis knows."""
        if may_judge:
            self._met = ()
        elif self._met != view.lineage:
            self._met, self._running_before = view.lineage, view.revision

    async def _carry_out(
        self, name: str, state: ModelState, decision: WritePlan | DropPlan | GiveUp | Sweep, term: int
    ) -> bool:
        generation = state.entry.generation
        match decision:
            case WritePlan(plan=plan):
                lost = sum(self._keys_of(name, state, executor) for executor in decision.restarted)
                plan = msgspec.structs.replace(plan, keys_lost=plan.keys_lost + lost)
                told = decision.told if plan.replicated else (_announcement(name, decision, lost),)
                written = (f"plan:{name}", f"failed:{name}", "counters", "rev", "log", f"moves:{name}", "bell")
                code = await self._bus.script(
                    "plan_write",
                    self._keys("leader", "models", *written),
                    [
                        self._node, term, name, generation, plan.revision, msgspec.json.encode(plan),
                        len(decision.settled), *decision.settled,
                        *(word for entry in told for word in (entry.kind, entry.text, entry.level)),
                    ],
                )  # fmt: skip
            case DropPlan():
                names = ("leader", f"plan:{name}", f"connected:{name}", f"lost:{name}", "rev", f"moves:{name}", "bell")
                code = await self._bus.script("plan_drop", self._keys(*names), [self._node, term])
            case GiveUp(error=error):
                keys = self._keys("leader", "models", f"failed:{name}", "rev", "log", "bell")
                failure = msgspec.json.encode(Failure(generation, error))
                code = await self._bus.script("give_up", keys, [self._node, term, name, generation, failure, error])
            case Sweep(executors=executors):
                keys = self._keys("leader", f"run:{name}", "members", "rev", "bell")
                code = await self._bus.script("sweep", keys, [self._node, term, self._bus.key("node:"), *executors])
        self.refused += int(code) <= 0
        return int(code) > 0

    def _keys_of(self, name: str, state: ModelState, executor: str) -> int:
        """The keys that go with an executor: its own node's word, or what was heard before that node went."""
        assert state.plan is not None
        assigned, report = state.plan.executors[executor], state.run.get(executor)
        if report is not None and report.epoch == assigned.epoch and report.state in GONE:
            return report.keys
        return self._held.of(assigned.node, name, executor)

    def _keys(self, *names: str) -> list[str]:
        return [self._bus.key(name) for name in names]


def _rests_on_checkpoint(state: ModelState, decision: WritePlan | DropPlan | GiveUp | Sweep) -> bool:
    """Whether it matters to a decision what the last complete checkpoint is: executors begin with it, or there is none
    to begin with."""
    match decision:
        case WritePlan(plan=plan):
            return state.plan is None or plan.restores > state.plan.restores
        case GiveUp():
            return state.checkpoint is None
        case _:
            return False


def _announcement(name: str, decision: WritePlan, keys: int) -> Told:
    if not decision.restarted:
        nodes = ", ".join(sorted(decision.plan.nodes()))
        return Told("model.placed", f"model {name} was placed on {nodes}")
    which = ", ".join(decision.restarted)
    text = f"executors {which} of {name} are started again"
    if keys:
        text += f" with empty state, {keys:,} {'key was' if keys == 1 else 'keys were'} lost"
    return Told("executor.restarted", f"{text}: {decision.reason}", "warning")
