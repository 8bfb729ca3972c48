from __future__ import annotations

from dataclasses import dataclass

import pytest
from tests.flow.flows import Endless, Kept

import penstock as ps
from penstock.flow.graph import Input
from penstock.flow.steps.count import Count
from penstock.flow.steps.map import Map
from penstock.flow.steps.sink import SinkStep


def new():
    return ps.Flow("test").source("in", ps.iterable([]))


async def later(x):
    return x


def pieces(x):
    yield x


def two_flows():
    return new().merge("both", new())


def cycle():
    flow = new().map("ok", str).flow
    flow.add(Map(name="a", inputs=(Input("b"),), fn=str))
    flow.add(Map(name="b", inputs=(Input("a"),), fn=str))
    flow.build()


def unknown_input():
    flow = new().flow
    flow.add(SinkStep(name="out", inputs=(Input("nowhere"),), sink=Kept()))
    flow.build()


def no_source():
    flow = ps.Flow("empty")
    flow.build()


def half_a_branch():
    yes, _ = new().branch("side", bool)
    yes.sink("out", Kept()).build()


def dangling():
    stream = new().map("kept", str)
    stream.map("lost", str)
    stream.sink("out", Kept()).build()


def unfinished_window():
    stream = new().key_by("k", "k")
    stream.window(ps.tumbling("1s"), on="ts")
    stream.sink("out", Kept()).build()


def join_without_time():
    stream = new().key_by("k", "k")
    stream.join("join", stream.filter("f", bool), within="1s")


def time_lost():
    new().stamp("time", "ts").map_frames("frames", lambda f: f).key_by("k", "k").window(ps.tumbling("1s"))


def windowed():
    return new().key_by("k", "k").window(ps.tumbling("1s"), on="ts").aggregate("w", n=ps.count())


def window_then_step_of_ones_own():
    windowed().flow.add(Count(name="n", inputs=(Input("w"),), site="test_check.py:1"))


def final_without_end():
    flow = ps.Flow("test")
    flow.source("in", Endless()).key_by("k", "k").count("n", emit="final").sink("out", Kept()).build()


def half_keyed():
    stream = new()
    stream.merge("both", stream.key_by("k", "k"))


CASES = {
    "un-keyed count": (lambda: new().count("n"), "n", "did you forget .key_by"),
    "un-keyed fold": (lambda: new().fold("f", 0, lambda s, r: (s, r)), "f", "did you forget .key_by"),
    "un-keyed reduce": (lambda: new().reduce("r", max), "r", "did you forget .key_by"),
    "un-keyed window": (lambda: new().window(ps.tumbling("1s"), on="ts"), None, "did you forget .key_by"),
    "keys lost": (lambda: new().key_by("k", "k").map("m", str).top_k("t", 3), "t", "did you forget .key_by"),
    "keys end with a window": (lambda: windowed().count("n"), "n", "did you forget .key_by"),
    "late records have no keys": (lambda: windowed().late.fold("f", 0, max), "f", "did you forget .key_by"),
    "un-keyed step behind a window": (window_then_step_of_ones_own, "n", "did you forget .key_by"),
    "un-keyed join": (lambda: new().join("j", new()), "j", "did you forget .key_by"),
    "half keyed": (half_keyed, "both", "with .key_by"),
    "duplicate": (lambda: new().map("in", str), "in", "already a step of this name"),
    "bad name": (lambda: new().map("a/b", str), "a/b", "letters, digits"),
    "no name": (lambda: new().map(str, str), None, "the step's name, a string"),
    "bad flow name": (lambda: ps.Flow("my flow"), "my flow", "letters, digits"),
    "no sink": (lambda: new().flow.build(), "in", "has no sink"),
    "no source": (no_source, None, "has no source"),
    "not callable": (lambda: new().map("m", 3), "m", "cannot be called"),
    "async": (lambda: new().map("m", later), "m", "use .enrich"),
    "generator": (lambda: new().map("m", pieces), "m", "use .flat_map"),
    "arity": (lambda: new().map("m", lambda a, b: a), "m", "missing a required argument: 'b'"),
    "fold arity": (lambda: new().key_by("k", "k").fold("f", 0, lambda s: s), "f", "2 arguments"),
    "not a source": (lambda: ps.Flow("t").source("in", Kept()), "in", "not a source"),
    "a path": (lambda: ps.Flow("t").source("in", "book.txt"), "in", "ps.files('book.txt')"),
    "a list": (lambda: ps.Flow("t").source("in", [1, 2]), "in", "ps.iterable"),
    "not a sink": (lambda: new().sink("out", ps.sequence(3)), "out", "not a sink"),
    "another flow": (two_flows, "both", "another flow"),
    "not a stream": (lambda: new().merge("both", 3), "both", "takes streams"),
    "cycle": (cycle, "a", "cycle: "),
    "unknown input": (unknown_input, "out", "no step of this flow"),
    "half a branch": (half_a_branch, "side", "goes nowhere"),
    "dangling": (dangling, "lost", "goes nowhere"),
    "unfinished window": (unfinished_window, None, "never aggregated"),
    "window without time": (lambda: new().key_by("k", "k").window(ps.tumbling("1s")), None, 'on="ts"'),
    "time lost": (time_lost, None, 'on="ts"'),
    "join without time": (join_without_time, "join", 'on="ts"'),
    "not a window": (lambda: new().key_by("k", "k").window("10s", on="ts"), None, "ps.tumbling"),
    "bad duration": (lambda: new().key_by("k", "k").window(ps.tumbling("1s"), on="ts", late="x"), None, "duration"),
    "bad k": (lambda: new().key_by("k", "k").top_k("t", 0), "t", "1 or more"),
    "bad emit": (lambda: new().key_by("k", "k").count("n", emit="often"), "n", "'update', 'final'"),
    "final without end": (final_without_end, "n", "never ends"),
    "bad policy": (lambda: ps.Flow("t", on_error="ignore"), None, "'skip'"),
    "bad executors": (lambda: ps.Flow("t", executors=0).build(), None, "executors=0"),
    "not a MapReduce": (lambda: new().map_reduce("mr", object()), "mr", "ps.MapReduce"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_mistake_names_step_cause_remedy_and_place(case):
    write, step, text = CASES[case]
    with pytest.raises(ps.FlowError) as caught:
        write()
    message = str(caught.value)
    assert caught.value.step == step
    assert text in message
    assert "\n  -> " in message
    if case not in ("cycle", "unknown input", "bad duration"):
        assert "test_check.py:" in message


def test_a_built_flow_is_frozen_and_in_order():
    flow = new().map("m", str).sink("out", Kept())
    graph = flow.build()
    flow.source("later", ps.iterable([]))
    assert list(graph.steps) == ["in", "m", "out"]
    with pytest.raises(AttributeError):
        graph.name = "other"


def test_steps_know_where_they_were_written():
    graph = new().map("m", str).sink("out", Kept()).build()
    assert all(step.site.startswith("test_check.py:") for step in graph.steps.values())


def test_late_records_need_not_be_used():
    stats = new().key_by("k", "k").window(ps.tumbling("1s"), on="ts").aggregate("stats", n=ps.count())
    stats.sink("out", Kept())
    assert list(stats.flow.build().steps) == ["in", "k", "stats.time", "stats", "out"]


def test_a_step_of_ones_own():
    @dataclass(frozen=True)
    class Twice(Map):
        kind = "twice"

    flow = new().flow
    flow.add(Twice(name="mine", inputs=(Input("in"),), fn=lambda x: x * 2)).sink("out", Kept())
    assert ps.testing.run(flow, {"in": [1, 2]}).outputs["out"] == [2, 4]


def test_shuffles_only_where_keys_must_meet():
    def stages(stream):
        return len(stream.sink("out", Kept()).build().topology.stages)

    assert stages(new().key_by("k", "k")) == 1
    assert stages(new().key_by("k", "k").count("n").filter("f", bool).reduce("r", max)) == 2
    assert stages(new().key_by("k", "k").count("n").map("m", str).key_by("k2", len).count("n2")) == 3


def test_hasattr_of_an_unkeyed_stream():
    with pytest.raises(AttributeError):
        new().no_such_step  # noqa: B018


def test_a_misspelt_step_is_guessed():
    words = ps.Flow("f").source("in", ps.iterable([])).key_by("k", len)
    with pytest.raises(
        ps.FlowError, match=r"a stream has no step 'cuont' \(at test_check\.py:\d+\)\n.*'count'\?"
    ) as caught:
        words.cuont("c")
    assert isinstance(caught.value, AttributeError)
    assert not hasattr(words, "cuont")
    with pytest.raises(ps.FlowError, match=r"the steps are: branch, count, "):
        words.zzz("c")
    with pytest.raises(AttributeError, match="did you mean 'mean'"):
        ps.meen  # noqa: B018


def test_a_hidden_step_is_told_by_its_visible_name():
    keyed = ps.Flow("f").source("in", ps.iterable([])).key_by("k", len)
    with pytest.raises(ps.FlowError, match=r"^step 'day': its on cannot be called"):
        keyed.window(ps.tumbling("1d"), on=lambda a, b: 0).aggregate("day", n=ps.count())
    keyed.window(ps.tumbling("1d"), on="ts").aggregate("day", n=ps.count())
    with pytest.raises(ps.FlowError, match=r"^step 'day': there is already"):
        keyed.window(ps.tumbling("1d"), on="ts").aggregate("day", n=ps.count())
