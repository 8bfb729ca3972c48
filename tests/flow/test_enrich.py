"""Enriching: order, concurrency, timeouts, failures, back-pressure, and nothing left running."""

import asyncio
import random
import threading

import pytest
from tests.flow.tape import rows, start

from penstock.errors import FlowError, StepError
from penstock.flow.batch import END_TIME, MIN_TIME, Keyed, Rows
from penstock.flow.graph import Input, Partitioning
from penstock.flow.steps.enrich import Enrich


@pytest.fixture
def enriching():
    opened = []

    def make(fn, concurrency=8, timeout=20.0, **more):
        operator, out = start(Enrich("look", (Input("in"),), "flow.py:4", fn, concurrency, timeout), **more)
        opened.append(operator)
        return operator, out

    yield make
    for operator in opened:
        operator.close()


async def double(value):
    await asyncio.sleep(random.random() / 200)
    return value * 2


def test_results_keep_the_order_of_the_input_and_watermarks_their_place(enriching):
    operator, out = enriching(double)
    operator.advance(0, 1, MIN_TIME)
    for n in range(30):
        operator.process(0, Rows([n * 10 + i for i in range(10)], None, [n * 10 + i for i in range(10)], 1))
        operator.advance(0, 1, n * 10 + 9)
    operator.advance(0, 1, END_TIME)
    operator.drain()
    assert out.values() == [i * 2 for i in range(300)]
    assert [time for batch in out.batches() for time in batch.times] == list(range(300))
    assert out.late_for_a_next_step() == []
    assert out.watermarks() == [MIN_TIME, *range(9, 300, 10), END_TIME]
    reached, seen = [], 0
    for entry in out.log:
        if entry[0] == "send":
            seen += len(entry[1])
        else:
            reached.append(seen)
    assert reached == [0, *range(10, 301, 10), 300], "a watermark comes when all records before it have gone"
    assert operator.pending() == 0


def test_calls_overlap_up_to_the_limit_and_no_further(enriching):
    running, most = 0, 0

    async def count(value):
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1
        return value

    operator, out = enriching(count, concurrency=5)
    operator.process(0, Rows(list(range(3))))
    operator.process(0, Rows(list(range(40))))
    operator.drain()
    assert most == 5
    assert len(out.values()) == 43


def test_a_second_batch_uses_what_concurrency_is_left(enriching):
    release = []

    async def fn(value):
        if value == "first":
            gate = asyncio.Event()
            release.append((asyncio.get_running_loop(), gate))
            await gate.wait()
        else:
            _loop, gate = release[0]
            gate.set()
        return value

    operator, out = enriching(fn, concurrency=2)
    operator.process(0, Rows(["first"]))
    operator.process(0, Rows(["second"]))
    operator.drain()
    assert out.values() == ["first", "second"]


def test_one_call_at_a_time_never_stalls(enriching):
    async def fn(value):
        return value

    operator, out = enriching(fn, concurrency=1)
    for i in range(200):
        operator.process(0, Rows([i]))
    operator.drain()
    assert out.values() == list(range(200))


def test_what_is_done_leaves_before_the_rest_of_its_batch(enriching):
    woken, gate = threading.Event(), threading.Event()

    async def fn(value):
        if value:
            await asyncio.to_thread(gate.wait, 20)
        return value

    operator, out = enriching(fn, wake=woken.set)
    operator.process(0, Rows([0, 1]))
    assert woken.wait(10)
    operator.poll()
    assert (out.values(), operator.pending()) == ([0], 1)
    gate.set()
    operator.drain()
    assert out.values() == [0, 1]


def test_failures_and_timeouts_meet_the_policy(enriching):
    async def fn(value):
        if value == 1:
            raise KeyError("unknown sensor")
        if value == 2:
            await asyncio.sleep(60)
        if value == 3:
            raise asyncio.CancelledError
        return value

    operator, out = enriching(fn, timeout=0.05, on_error="skip")
    operator.process(0, Rows([0, 1, 2, 3, 4], None, [10, 11, 12, 13, 14]))
    operator.drain()
    assert out.values() == [0, 4]
    assert [time for batch in out.batches() for time in batch.times] == [10, 14]
    assert operator.ctx.counters["skipped"] == 3
    operator, _ = enriching(fn, timeout=0.05)
    operator.process(0, Rows([2]))
    with pytest.raises(TimeoutError, match=r"no answer within 0.05 s"):
        operator.drain()


def test_a_function_that_is_not_async_is_an_error_of_the_record(enriching):
    operator, _ = enriching(lambda value: value)
    operator.process(0, Rows([2]))
    with pytest.raises(TypeError, match="await"):
        operator.drain()


def test_keyed_records_are_seen_whole_and_come_out_plain(enriching):
    async def fn(record):
        return (record.key, record.value)

    operator, out = enriching(fn)
    operator.process(0, rows(("a", 1, 2)))
    operator.drain()
    assert out.records() == [("a", 2)]
    assert type(out.records()[0]) is tuple
    assert out.batches()[0].keys is None
    assert Keyed("a", 2) == ("a", 2)


def test_what_waits_is_bounded(enriching):
    operator, _ = enriching(double, concurrency=4)
    most = 0
    for n in range(40):
        operator.process(0, Rows(list(range(n, n + 10))))
        most = max(most, operator.pending())
    assert most <= 40
    operator.drain()


def test_closing_ends_calls_under_way_and_the_thread():
    cancelled = threading.Event()
    started = threading.Event()

    async def fn(value):
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    operator, out = start(Enrich("look", (Input("in"),), "", fn, 2, 60.0))
    operator.process(0, Rows([1, 2, 3]))
    assert started.wait(10)
    operator.close()
    assert cancelled.is_set()
    assert out.values() == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("penstock-enrich")]
    operator.close()


def test_no_thread_is_started_before_the_first_record():
    operator, out = start(Enrich("look", (Input("in"),), "", double, 2, 60.0))
    operator.advance(0, 0, END_TIME)
    operator.drain()
    operator.close()
    assert out.watermarks() == [END_TIME]


@pytest.mark.parametrize(("fn", "concurrency", "timeout"), [(None, 1, 1), (double, 0, 1), (double, 1, 0)])
def test_bad_arguments(fn, concurrency, timeout):
    with pytest.raises(FlowError):
        Enrich("look", (Input("in"),), "flow.py:4", fn, concurrency, timeout)


def test_the_result_is_not_keyed():
    step = Enrich("look", (Input("in"),), "", double)
    assert step.partitioning((Partitioning.PARTITIONED,)) is Partitioning.NONE


def test_a_function_that_blocks_is_named(enriching, monkeypatch):
    monkeypatch.setattr("penstock.flow.steps.enrich._GRACE", 0.2)
    gate = threading.Event()

    async def fn(value):
        gate.wait(20)

    operator, _ = enriching(fn, timeout=0.05)
    operator.process(0, Rows([1]))
    with pytest.raises(StepError, match="does the function block without await"):
        operator.drain()
    gate.set()
