"""A node's share of checkpoints: what it posts to its workers, what it answers the leader."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from tests.cluster.catalogue_in_redis import asynchronous
from tests.cluster.checkpoint_scene import GENERATION, NAME, plan, record, state
from tests.cluster.nodes import until

from penstock.cluster.checkpoint_parts import NumberUsed, Parts
from penstock.cluster.service import Unavailable
from penstock.worker.messages import Barrier, Checkpointed, CheckpointFailed, Committed, ExecutorId


class Host:
    """Executor 0.0 in worker 1 and 1.0 in worker 2; worker 3 has a standby."""

    def __init__(self):
        self.plan = plan(nodes=("here", "here"))
        self.workers = {"0.0": 1, "1.0": 2}
        self.posted = []

    def plan_of(self, model):
        return self.plan if model == NAME else None

    def workers_of(self, model, executors):
        return sorted({worker for executor, worker in self.workers.items() if executor in executors})

    def holding(self, model):
        return [1, 2, 3]

    def post(self, worker, message):
        self.posted.append((worker, message))


class Desk(Parts):
    """With the questions of a leader."""

    def __init__(self):
        self.host = Host()
        super().__init__("here", self.host)

    def ask(self, number, *, generation=GENERATION, revision=1, timeout=20.0):
        return asyncio.create_task(self.take(NAME, generation, revision, number, timeout))

    async def asked(self, number, **more):
        """The question, once the workers have it."""
        question = self.ask(number, **more)
        await until(lambda: (1, Barrier(NAME, number)) in self.host.posted or question.done())
        return question

    def part(self, executor, number, size=10):
        stage, index = map(int, executor.split("."))
        self.heard(Checkpointed(NAME, number, ExecutorId(stage, index), size, 0.25))


@asynchronous
async def test_barriers_go_out_and_all_parts_make_the_answer():
    desk = Desk()
    question = await desk.asked(4)
    assert desk.host.posted == [(1, Barrier(NAME, 4)), (2, Barrier(NAME, 4))]
    desk.part("0.0", 3)
    desk.part("0.0", 4)
    desk.part("0.0", 4, size=99)
    await asyncio.sleep(0)
    assert not question.done()
    desk.part("1.0", 4, size=20)
    assert await question == {"0.0": (10, 0.25), "1.0": (20, 0.25)}
    assert desk.late == 1


@asynchronous
async def test_a_node_answers_for_its_own_primaries_alone():
    desk = Desk()
    desk.host.plan = plan(nodes=("here", "there"))
    question = await desk.asked(1)
    assert desk.host.posted == [(1, Barrier(NAME, 1))]
    desk.part("0.0", 1)
    assert set(await question) == {"0.0"}
    desk.host.plan = plan(nodes=("there", "there"))
    assert await desk.ask(2) == {}


@asynchronous
async def test_a_part_that_cannot_be_written_is_told_at_once():
    desk = Desk()
    question = await desk.asked(1)
    desk.heard(CheckpointFailed(NAME, 1, "No space left on device"))
    with pytest.raises(Unavailable, match="node here: No space left"):
        await question


@asynchronous
async def test_a_question_by_another_plan_is_refused():
    desk = Desk()
    for more in ({"revision": 2}, {"generation": GENERATION + 1}, {"generation": GENERATION - 1}):
        with pytest.raises(Unavailable, match="has plan 1 of"):
            await desk.ask(1, **more)
    desk.host.plan = None
    with pytest.raises(Unavailable, match="has no plan"):
        await desk.ask(1)
    assert desk.host.posted == []


@asynchronous
async def test_a_number_is_taken_once():
    desk = Desk()
    first = await desk.asked(5)
    desk.part("0.0", 5)
    desk.part("1.0", 5)
    await first
    for number in (4, 5):
        with pytest.raises(NumberUsed) as caught:
            await desk.ask(number)
        assert caught.value.used == 5
    second = await desk.asked(6)
    third = await desk.asked(7)
    with pytest.raises(Unavailable, match="checkpoint 7 was asked for"):
        await second
    desk.part("0.0", 7)
    desk.part("1.0", 7)
    assert set(await third) == {"0.0", "1.0"}


@asynchronous
async def test_an_executor_that_goes_ends_the_waiting():
    desk = Desk()
    question = await desk.asked(1)
    desk.gone(3, NAME, ["2.0"])
    await asyncio.sleep(0)
    assert not question.done()
    desk.gone(2, NAME, ["1.0"])
    with pytest.raises(Unavailable, match="gone"):
        await question
    del desk.host.workers["1.0"]
    with pytest.raises(Unavailable, match=r"executors 1.0 are not running on node here"):
        await desk.ask(2)


@asynchronous
async def test_another_plan_and_the_end_of_the_lease_end_the_waiting():
    desk = Desk()
    question = await desk.asked(1)
    desk.follow({NAME: state(desk.host.plan)})
    await asyncio.sleep(0)
    assert not question.done()
    desk.follow({NAME: state(plan(revision=2))})
    with pytest.raises(Unavailable, match="the plan of default/counts has changed"):
        await question
    question = await desk.asked(2)
    desk.forget()
    with pytest.raises(Unavailable, match="has stopped"):
        await question


@asynchronous
async def test_who_does_not_answer_is_named():
    desk = Desk()
    question = await desk.asked(1, timeout=0.05)
    desk.part("0.0", 1)
    with pytest.raises(Unavailable, match=r"executors 1.0 on node here had not written their parts after 0.05 s"):
        await question
    desk.part("1.0", 1)
    assert desk.late == 1


def test_every_worker_hears_once_that_a_checkpoint_is_complete():
    desk = Desk()
    desk.committed(NAME, GENERATION, 3)
    assert desk.host.posted == [(worker, Committed(NAME, 3)) for worker in (1, 2, 3)]
    desk.committed(NAME, GENERATION, 3)
    desk.committed(NAME, GENERATION, 2)
    desk.committed(NAME, GENERATION - 1, 9)
    desk.committed("default/other", GENERATION, 9)
    desk.follow({NAME: state(desk.host.plan, record=record(3))})
    assert len(desk.host.posted) == 3
    desk.gone(2, NAME, ["1.0"])
    desk.follow({NAME: state(desk.host.plan, record=record(3))})
    assert desk.host.posted[3:] == [(2, Committed(NAME, 3))], "a worker that came later"
    desk.follow({NAME: state(desk.host.plan, record=record(4))})
    assert desk.host.posted[4:] == [(worker, Committed(NAME, 4)) for worker in (1, 2, 3)]


def test_without_a_checkpoint_nothing_is_told():
    desk = Desk()
    desk.follow({NAME: state(desk.host.plan), "default/x": state(None)})
    desk.follow({NAME: msgspec.structs.replace(state(desk.host.plan), durable=record(0))})
    assert desk.host.posted == []
