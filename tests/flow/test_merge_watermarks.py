from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.flow.batch import END_TIME, IDLE, MIN_TIME, Rows
from penstock.flow.graph import Input
from penstock.flow.operator import StepContext
from penstock.flow.steps.merge import Merge


class Tape:
    def __init__(self):
        self.events = []

    def send(self, batch):
        self.events.append(batch)

    def advance(self, lane, watermark):
        self.events.append((lane, watermark))


def merge():
    operator = Merge(name="m", inputs=(Input("a"), Input("b"))).operator(StepContext("m"))
    tape = Tape()
    operator.connect((tape,))
    return operator, tape


def test_a_lane_on_two_ports_moves_with_the_slower():
    operator, tape = merge()
    for port in (0, 1):
        operator.advance(port, 5, MIN_TIME)
    operator.advance(0, 5, 100)
    operator.advance(1, 5, 40)
    operator.advance(1, 5, 200)
    operator.advance(0, 5, END_TIME)
    operator.advance(1, 5, END_TIME)
    assert tape.events == [(5, MIN_TIME), (5, 40), (5, 100), (5, 200), (5, END_TIME)]


def test_a_lane_on_one_port_passes_as_it_is():
    operator, tape = merge()
    for watermark in (MIN_TIME, 10, IDLE, 20, END_TIME):
        operator.advance(0, 1, watermark)
    assert tape.events == [(1, MIN_TIME), (1, 10), (1, IDLE), (1, 20), (1, END_TIME)]


def test_batches_pass():
    operator, tape = merge()
    batch = Rows([1], lane=3)
    operator.process(1, batch)
    assert tape.events == [batch]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 50)), max_size=40))
def test_no_promise_is_ever_taken_back(steps):
    operator, tape = merge()
    for port in (0, 1):
        operator.advance(port, 0, MIN_TIME)
    reached = [MIN_TIME, MIN_TIME]
    for port, step in steps:
        reached[port] = max(reached[port] + step, step) if reached[port] != MIN_TIME else step
        operator.advance(port, 0, reached[port])
        sent = [watermark for _, watermark in tape.events]
        assert sent == sorted(sent)
        assert sent[-1] == min(reached)
