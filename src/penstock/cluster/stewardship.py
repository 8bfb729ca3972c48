"""What the leader does besides leading: plans for models, members that are gone. Decisions are made in `reconcile`."""

from __future__ import annotations

import msgspec

from penstock.clock import Clock
from penstock.cluster.bus import Bus
from penstock.cluster.metrics import HeldKeys
from penstock.cluster.plan import GONE, ModelState
from penstock.cluster.reconcile import DropPlan, GiveUp, Later, Nothing, Sweep, WritePlan, decide
from penstock.cluster.view import Member, View

_FORGET_AFTER_LEASES = 2
"""A member whose lease ran out is shown as dead for so many leases, then struck off."""


class Steward:
    """Carries out the leader's decisions by scripts that check its term."""

    def __init__(self, bus: Bus, node: str, clock: Clock, held: HeldKeys) -> None:
        self._bus, self._node, self._clock, self._held = bus, node, clock, held
        self._dead_since: dict[tuple[str, int], float] = {}

    async def act(self, view: View, term: int) -> bool:
        """Decide about everything once; whether something was changed. Raises `BusDown`."""
        changed = await self._forget_dead(view, term)
        live = view.live()
        for name, state in view.models.items():
            decision = decide(state, live, term, view.now, view.placed(but=name))
            if not isinstance(decision, Nothing | Later):
                changed = await self._carry_out(name, state, decision, term) or changed
        return changed

    async def _carry_out(
        self, name: str, state: ModelState, decision: WritePlan | DropPlan | GiveUp | Sweep, term: int
    ) -> bool:
        generation = state.entry.generation
        match decision:
            case WritePlan(plan=plan):
                lost = sum(self._keys_of(name, state, executor) for executor in decision.restarted)
                plan = msgspec.structs.replace(plan, keys_lost=plan.keys_lost + lost)
                kind, text, level = _announcement(name, decision, lost)
                code = await self._bus.script(
                    "plan_write",
                    self._keys("leader", f"model:{name}", f"plan:{name}", "rev", "log"),
                    [
                        self._node, term, name, generation, plan.revision, msgspec.json.encode(plan),
                        kind, text, level,
                    ],
                )  # fmt: skip
            case DropPlan():
                names = ("leader", f"plan:{name}", f"connected:{name}", f"lost:{name}", "rev")
                code = await self._bus.script("plan_drop", self._keys(*names), [self._node, term])
            case GiveUp(error=error):
                keys = self._keys("leader", f"model:{name}", "rev", "log")
                code = await self._bus.script("give_up", keys, [self._node, term, name, generation, error])
            case Sweep(executors=executors):
                keys = self._keys("leader", f"run:{name}", "members", "rev")
                code = await self._bus.script("sweep", keys, [self._node, term, self._bus.key("node:"), *executors])
        return int(code) > 0

    def _keys_of(self, name: str, state: ModelState, executor: str) -> int:
        """The keys that go with an executor: its own node's word, or what was heard before that node went."""
        assert state.plan is not None
        assigned, report = state.plan.executors[executor], state.run.get(executor)
        if report is not None and report.epoch == assigned.epoch and report.state in GONE:
            return report.keys
        return self._held.of(assigned.node, name, executor)

    async def _forget_dead(self, view: View, term: int) -> bool:
        now = self._clock.monotonic()
        dead = [m for m in view.members.values() if not m.live]
        known = {(m.id, m.incarnation) for m in dead}
        self._dead_since = {key: at for key, at in self._dead_since.items() if key in known}
        changed = False
        for member in dead:
            since = self._dead_since.setdefault((member.id, member.incarnation), now)
            if now - since >= _FORGET_AFTER_LEASES * self._bus.settings.lease:
                changed = await self._forget(member, term) or changed
        return changed

    async def _forget(self, member: Member, term: int) -> bool:
        keys = self._keys("leader", "members", f"node:{member.id}", "log", f"metrics:{member.id}")
        return bool(await self._bus.script("forget", keys, [self._node, term, member.id, member.incarnation]) == 1)

    def _keys(self, *names: str) -> list[str]:
        return [self._bus.key(name) for name in names]


def _announcement(name: str, decision: WritePlan, keys: int) -> tuple[str, str, str]:
    if not decision.restarted:
        nodes = ", ".join(sorted(decision.plan.nodes()))
        return "model.placed", f"model {name} was placed on {nodes}", "info"
    which = ", ".join(decision.restarted)
    text = f"executors {which} of {name} are started again"
    if keys:
        text += f" with empty state, {keys:,} {'key was' if keys == 1 else 'keys were'} lost"
    return "executor.restarted", f"{text}: {decision.reason}", "warning"
