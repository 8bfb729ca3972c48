"""Every operation, with every node killed at every step: before the step has its effect, and just after."""

from __future__ import annotations

import pytest
from tests.cluster.transaction.simulator import LOCAL, World

from penstock.cluster.transaction import instructions as do
from penstock.cluster.transaction.answers import Done, RolledBack
from penstock.cluster.transaction.records import Kind, Operation, State

FOUND = {
    Kind.ADD: State.DELETED,
    Kind.UPDATE: State.OFFLINE,
    Kind.DELETE: State.OFFLINE,
    Kind.ONLINE: State.OFFLINE,
    Kind.OFFLINE: State.ONLINE,
}


class Killing(World):
    """Kills `victim` at its `step`-th instruction, looks and renewals not counted."""

    victim, step, effect_first, back = "n0", -1, False, 0.2
    steps = 0
    killed: object = None

    def issue(self, host, instruction):
        counted = not isinstance(instruction, (do.Look, do.Renew)) and host.name == self.victim and self.clients
        if counted:
            self.steps += 1
            if self.steps == self.step and not self.killed:
                self.killed = instruction
                if self.effect_first:
                    if isinstance(instruction, LOCAL):
                        self.carry_out(host, instruction)
                    else:
                        self.effect(host, instruction, host.process)
                self.crash(host, back=self.back)
                return
        if host.machine is not None:
            super().issue(host, instruction)


def run(kind, victim, step, effect_first=False, back=0.2):
    world = Killing(7, set(), 3)
    world.victim, world.step, world.effect_first, world.back = victim, step, effect_first, back
    world.inherit(FOUND[kind], State.ONLINE)
    world.up()
    digest = "new" if kind in (Kind.ADD, Kind.UPDATE) else ""
    world.submit(Operation(kind=kind, model="g/a", digest=digest), "n0")
    world.run(world.now + 2.0)
    world.rest()
    world.repeat_keys()
    first = world.clients[0].first
    assert isinstance(first, (Done, RolledBack))
    changed = world.store.models["g/a"].tx == first.tx
    assert changed == isinstance(first, Done)
    return world


@pytest.mark.parametrize("victim", ["n0", "n2"])
@pytest.mark.parametrize("kind", list(Kind))
def test_killed_at_every_step(kind, victim):
    undisturbed = run(kind, victim, -1)
    assert isinstance(undisturbed.clients[0].first, Done)
    killed, answers = set(), set()
    for step in range(1, undisturbed.steps + 1):
        for effect_first in (False, True):
            world = run(kind, victim, step, effect_first, back=(0.2, 5.0)[step % 2])
            killed.add(type(world.killed))
            answers.add(type(world.clients[0].first))
    assert {do.Prepare, do.Write, do.SendVote, do.Apply, do.Discard, do.Ack} <= killed
    assert answers == {Done, RolledBack}
