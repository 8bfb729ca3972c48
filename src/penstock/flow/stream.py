"""`Stream`: records on their way through a flow; its methods add steps.

Every method's first argument is the new step's name, by which its state, metrics and errors are found. Functions of a
keyed stream see `Keyed(key, value)` in `map`, `flat_map`, `filter`, `branch` and `key_by`; the keyed steps (`count`,
`reduce`, `fold`, `top_k`, `distinct`, windows) see the value.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast, overload

from penstock.errors import FlowError
from penstock.flow.batch import Keyed
from penstock.flow.check import (
    caller_site,
    carries_times,
    check_connector,
    check_function,
    check_keyed,
    check_name,
    unknown_step,
    window_without_time,
)
from penstock.flow.connector import Sink
from penstock.flow.fields import Field
from penstock.flow.graph import Input, Partitioning, Step
from penstock.flow.mapreduce import MapReduce, combiner
from penstock.flow.steps.branch import Branch
from penstock.flow.steps.count import Count
from penstock.flow.steps.distinct import Distinct
from penstock.flow.steps.emission import EMISSIONS, Emission
from penstock.flow.steps.filter import Filter
from penstock.flow.steps.flat_map import FlatMap
from penstock.flow.steps.fold import Fold
from penstock.flow.steps.key_by import KeyBy
from penstock.flow.steps.map import Map
from penstock.flow.steps.map_frames import MapFrames
from penstock.flow.steps.map_reduce import MapPairs, ReducePairs
from penstock.flow.steps.merge import Merge
from penstock.flow.steps.reduce import Reduce
from penstock.flow.steps.sink import SinkStep
from penstock.flow.steps.top_k import TopK

if TYPE_CHECKING:
    from typing import Self

    import polars as pl

    from penstock.flow.aggregates import Aggregate
    from penstock.flow.builder import Flow
    from penstock.flow.windows import Duration, Window

__all__ = ["AggregatedStream", "KeyedStream", "Stream", "TimedStream", "Windowed", "stream_of"]

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")
S = TypeVar("S")

_KEYED_ONLY = frozenset({"count", "reduce", "fold", "top_k", "window", "join", "join_latest"})


class Stream(Generic[T]):
    """Records of type `T`, without keys."""

    def __init__(self, flow: Flow, source: Input) -> None:
        self._flow = flow
        self._input = source

    @property
    def flow(self) -> Flow:
        """The flow that this stream belongs to."""
        return self._flow

    def map(self, name: str, fn: Callable[[T], U]) -> Stream[U]:
        """`fn(record)` in place of each record."""
        check_name(name)
        check_function(name, fn)
        return self._add(Map, name, fn=fn)

    def flat_map(self, name: str, fn: Callable[[T], Iterable[U]]) -> Stream[U]:
        """Every item of `fn(record)`: a list, or a generator's items."""
        check_name(name)
        check_function(name, fn, generator=True)
        return self._add(FlatMap, name, fn=fn)

    def filter(self, name: str, fn: Callable[[T], object]) -> Self:
        """Only the records for which `fn(record)` is true."""
        check_name(name)
        check_function(name, fn)
        return self._same(Filter, name, fn=fn)

    def branch(self, name: str, fn: Callable[[T], object]) -> tuple[Self, Self]:
        """Two streams: the records for which `fn(record)` is true, and the others."""
        check_name(name)
        check_function(name, fn)
        first = self._same(Branch, name, fn=fn)
        return first, self._alike(Input(name, 1))

    def merge(self, name: str, *others: Stream[T]) -> Self:
        """The records of this stream and of `others`; either all are keyed or none is."""
        check_name(name)
        site = caller_site()
        if not others:
            raise FlowError(name, "it has nothing to merge with", remedy=".merge(name, other, …)", site=site)
        inputs = [self._input, *(self._of_this_flow(name, other) for other in others)]
        return self._same(Merge, name, inputs=tuple(inputs))

    def map_frames(self, name: str, fn: Callable[[pl.DataFrame], pl.DataFrame]) -> Stream[Any]:
        """`fn(frame)` in place of each batch, as a Polars frame with one row per record."""
        check_name(name)
        check_function(name, fn)
        return self._add(MapFrames, name, fn=fn)

    def key_by(self, name: str, key: Field) -> KeyedStream[T]:
        """Give each record a key: `key(record)`, or the field called `key`. Records with equal keys meet in one
        executor at the next keyed step."""
        check_name(name)
        if not isinstance(key, str):
            check_function(name, key, what="key")
        return self._keyed(KeyBy, name, key=key)

    def distinct(self, name: str, by: Field | None = None) -> Self:
        """The first record of each kind: equal records are one kind, or those with equal `by(record)`. On a keyed
        stream for each key apart. Every kind is remembered for ever; to forget, count them in a window."""
        check_name(name)
        if by is not None and not isinstance(by, str):
            check_function(name, by, what="by")
        if self._is_keyed():
            return self._same(Distinct, name, by=by)
        key = KeyBy(name=f"{name}.key", inputs=(self._input,), site=caller_site(), key=_itself if by is None else by)
        self._flow.add(key)
        return self._same(Distinct, name, inputs=(Input(key.name),), per_key=False)

    def map_reduce(self, name: str, program: MapReduce | type[MapReduce]) -> KeyedStream[Any]:
        """`Keyed(key, result)` of a `MapReduce`: one per key when a bounded input has ended, updates otherwise."""
        check_name(name)
        return self._map_reduce(f"{name}.map", name, program)

    def stamp(self, name: str, on: Field) -> Self:
        """Give each record its event time, from a field or a function: milliseconds since 1970, or a datetime."""
        check_name(name)
        return self._alike(self._stamp(name, on))

    def enrich(
        self, name: str, fn: Callable[[T], Awaitable[U]], concurrency: int = 64, timeout: float = 30.0
    ) -> Stream[U]:
        """`await fn(record)` in place of each record, for at most `concurrency` records at a time, each within
        `timeout` seconds; the order is kept."""
        from penstock.flow.steps.enrich import Enrich

        check_name(name)
        return self._add(Enrich, name, fn=fn, concurrency=concurrency, timeout=timeout)

    def sink(self, name: str, sink: Sink) -> Flow:
        """Write every record to `sink`; the flow is given back."""
        check_name(name)
        check_connector(name, sink, Sink)
        self._flow.add(SinkStep(name=name, inputs=(self._input,), site=caller_site(), sink=sink))
        return self._flow

    # -- how the methods above add their step -------------------------------------------------------------------------

    def _stamp(self, name: str, on: Field) -> Input:
        from penstock.flow.steps.stamp import Stamp

        if not isinstance(on, str):
            check_function(name.partition(".")[0], on, what="on")
        return self._step(Stamp, name, None, on=on)

    def _step(self, kind: Callable[..., Step], name: str, inputs: tuple[Input, ...] | None, **fields: Any) -> Input:
        made = kind(name=name, inputs=inputs or (self._input,), site=caller_site(), **fields)
        self._flow.add(made)
        return Input(name)

    def _add(self, kind: Callable[..., Step], name: str, **fields: Any) -> Stream[Any]:
        return Stream(self._flow, self._step(kind, name, None, **fields))

    def _keyed(
        self, kind: Callable[..., Step], name: str, inputs: tuple[Input, ...] | None = None, **fields: Any
    ) -> KeyedStream[Any]:
        return KeyedStream(self._flow, self._step(kind, name, inputs, **fields))

    def _same(
        self, kind: Callable[..., Step], name: str, inputs: tuple[Input, ...] | None = None, **fields: Any
    ) -> Self:
        return self._alike(self._step(kind, name, inputs, **fields))

    def _alike(self, source: Input) -> Self:
        # Steps that keep their records keep whether these are keyed, so the class is the same.
        return cast("Self", stream_of(self._flow, source))

    def _is_keyed(self) -> bool:
        return self._flow._partitionings[self._input.step] is not Partitioning.NONE

    def _map_reduce(self, map_name: str, name: str, program: MapReduce | type[MapReduce]) -> KeyedStream[Any]:
        made = program() if isinstance(program, type) else program
        if not isinstance(made, MapReduce):
            raise FlowError(
                name,
                f"{type(made).__name__} is no MapReduce",
                remedy="derive the class from ps.MapReduce",
                site=caller_site(),
            )
        combine = combiner(name, made)
        mapped = self._keyed(MapPairs, map_name, program=made, combine=combine)
        return mapped._keyed(ReducePairs, name, program=made, combine=combine)

    def _of_this_flow(self, name: str, other: Any) -> Input:
        if not isinstance(other, Stream):
            raise FlowError(
                name,
                f"it takes streams, not {type(other).__name__} {other!r:.60}",
                remedy="give the result of flow.source(...) or of a step",
                site=caller_site(),
            )
        if other._flow is not self._flow:
            raise FlowError(
                name,
                f"stream {other._input.step!r} belongs to another flow ({other._flow.name!r})",
                remedy="begin both streams with .source(...) of the same flow",
                site=caller_site(),
            )
        return other._input

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._flow.name!r}, {self._input.step!r})"

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            """The keyed steps exist on a `KeyedStream` only; say so when one is used without keys."""
            if name not in _KEYED_ONLY:
                if name.startswith("_"):
                    raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
                raise unknown_step(name, {*dir(type(self)), *_KEYED_ONLY} - {"flow"}, caller_site())

            def refuse(*args, **named):
                step = args[0] if args and isinstance(args[0], str) else None
                raise check_keyed(step, name, caller_site())

            return refuse


def _itself(record: Any) -> Any:
    return record


class KeyedStream(Stream[Keyed], Generic[V]):
    """Records `Keyed(key, value)` with values of type `V`."""

    def count(self, name: str, emit: Emission = "update") -> KeyedStream[int]:
        """The number of records per key so far, after every record; `emit="final"`: once per key at the end."""
        check_name(name)
        return self._keyed(Count, name, emit=_emission(name, emit))

    def reduce(self, name: str, fn: Callable[[V, V], V], emit: Emission = "update") -> KeyedStream[V]:
        """`fn(reduced so far, value)` per key, after every record; `emit="final"`: once per key at the end."""
        check_name(name)
        check_function(name, fn, 2)
        return self._keyed(Reduce, name, fn=fn, emit=_emission(name, emit))

    @overload
    def fold(self, name: str, initial: Callable[[], S], fn: Callable[[S, V], tuple[S, U | None]]) -> KeyedStream[U]: ...

    @overload
    def fold(self, name: str, initial: S, fn: Callable[[S, V], tuple[S, U | None]]) -> KeyedStream[U]: ...

    def fold(self, name: str, initial: Any, fn: Callable[[Any, V], tuple[Any, Any]]) -> KeyedStream[Any]:
        """`state, output = fn(state, value)` for every record of a key, starting with `initial` (a value, or a function
        that makes one); outputs that are not `None` go on. The state is made of plain values: text, numbers, bytes,
        lists, tuples, dicts, sets, datetimes, Structs, dataclasses."""
        check_name(name)
        check_function(name, fn, 2)
        if callable(initial):
            check_function(name, initial, 0, what="initial")
        return self._keyed(Fold, name, initial=initial, fn=fn)

    def top_k(
        self, name: str, k: int, by: Field | None = None, of: Field | None = None, emit: Emission | None = None
    ) -> KeyedStream[list[V]]:
        """The `k` values of each key with the greatest `by(value)`, best first; equal ones in the order of their repr.
        `of`: what a value is about; a later value about the same thing replaces the earlier one. `emit`: `"update"`
        sends the list whenever it changes, `"final"` once at the end; by default final for a bounded input."""
        check_name(name)
        if not isinstance(k, int) or k < 1:
            raise FlowError(name, f"k={k!r} is no number of records", remedy="give 1 or more", site=caller_site())
        for what, field in (("by", by), ("of", of)):
            if field is not None and not isinstance(field, str):
                check_function(name, field, what=what)
        emission = None if emit is None else _emission(name, emit)
        return self._keyed(TopK, name, k=k, by=by, of=of, emit=emission)

    def window(self, window: Window, on: Field | None = None, late: Duration = 0) -> Windowed:
        """Cut each key's records into windows of event time; go on with `.aggregate(...)`. `on`: a field or function
        that gives the time. `late`: how long a window is kept open for records that come out of order."""
        return Windowed(self, window, on, late, caller_site())

    def join(
        self,
        name: str,
        other: KeyedStream[U],
        within: Duration | None = None,
        window: Window | None = None,
        on: Field | tuple[Field, Field] | None = None,
        how: Literal["inner", "left"] = "inner",
        late: Duration = 0,
    ) -> TimedStream[tuple[V, U]]:
        """`Keyed(key, (left, right))` for every pair of records with equal keys: at most `within` apart in event time,
        or in the same `window`; without either, every record is kept for ever. `on`: where the time is, one field or
        function for both sides or a pair. `how="left"` (with a window) also gives `(left, None)`."""
        from penstock.flow.steps.join import Join
        from penstock.flow.windows import duration_ms

        check_name(name)
        sides = self._sides(name, other, on, timed=within is not None or window is not None)
        made = self._step(
            Join,
            name,
            sides,
            window=window,
            how=how,
            late_ms=duration_ms(late, what="late", least=0),
            within_ms=None if within is None else duration_ms(within, what="within", least=0),
        )
        return TimedStream(self._flow, made)

    def join_latest(
        self, name: str, other: KeyedStream[U], on: Field | tuple[Field, Field] | None = None
    ) -> KeyedStream[tuple[V, U | None]]:
        """`Keyed(key, (left, right))` for each record of this stream, at once: `right` is the latest record of `other`
        with that key, or `None`. With `on` (see `join`) the latest in event time, else the last that came."""
        from penstock.flow.steps.join_latest import JoinLatest

        check_name(name)
        return self._keyed(JoinLatest, name, self._sides(name, other, on, timed=False))

    def _sides(self, name: str, other: Any, on: Field | tuple[Field, Field] | None, timed: bool) -> tuple[Input, Input]:
        """Both inputs of a join, stamped when `on` is given."""
        site = caller_site()
        inputs = (self._input, self._of_this_flow(name, other))
        if on is None:
            if timed and not all(carries_times(self._flow._steps, i) for i in inputs):
                raise window_without_time(name, site)
            return inputs
        fields = on if isinstance(on, tuple) else (on, on)
        if len(fields) != 2:
            raise FlowError(name, f"on={on!r:.60} is not one field or two", remedy='on=("ts", "time")', site=site)
        left, right = (
            stream._stamp(f"{name}.{side}-time", field)
            for stream, side, field in zip((self, other), ("left", "right"), fields, strict=True)
        )
        return left, right


def _emission(name: str, emit: Any) -> Emission:
    if emit not in EMISSIONS:
        raise FlowError(
            name,
            f"emit={emit!r} is unknown",
            remedy=f"use one of {', '.join(map(repr, EMISSIONS))}",
            site=caller_site(),
        )
    known: Emission = emit
    return known


class Windowed:
    """A keyed stream cut into windows, waiting for `.aggregate(...)`."""

    def __init__(self, stream: KeyedStream[Any], window: Window, on: Field | None, late: Duration, site: str) -> None:
        from penstock.flow.windows import Session, Sliding, duration_ms

        if not isinstance(window, (Sliding, Session)):
            raise FlowError(
                None,
                f"{window!r:.60} is no window",
                remedy='use ps.tumbling("10s"), ps.sliding("1m", every="10s") or ps.session("30s")',
                site=site,
            )
        if on is None and not carries_times(stream._flow._steps, stream._input):
            raise window_without_time(None, site)
        self._stream, self._window, self._on = stream, window, on
        self._late_ms = duration_ms(late, what="late", least=0)
        stream._flow._unfinished[id(self)] = (site, "a .window(...) is never aggregated")

    def aggregate(self, name: str, /, **aggregates: Aggregate) -> AggregatedStream:
        """One record `{"key", "start", "end", <your aggregates>}` per key and window, times in milliseconds, for
        example `.aggregate("stats", n=ps.count(), mean=ps.mean("value"))`. The records have no key any more: put a
        `key_by` before a keyed step that follows."""
        from penstock.flow.steps.window import WindowAggregate

        check_name(name)
        stream = self._stream
        source = stream._input if self._on is None else stream._stamp(f"{name}.time", self._on)
        made = stream._step(
            WindowAggregate,
            name,
            (source,),
            window=self._window,
            aggregates=tuple(aggregates.items()),
            late_ms=self._late_ms,
        )
        stream._flow._unfinished.pop(id(self), None)
        return AggregatedStream(stream._flow, made)


class AggregatedStream(Stream[dict[str, Any]]):
    """What came of windows: a dictionary per key and window, without keys."""

    @property
    def late(self) -> Stream[Any]:
        """The records that came too late for their windows, as they were before `key_by`. They are counted in any
        case."""
        return stream_of(self._flow, Input(self._input.step, 1))


class TimedStream(KeyedStream[V]):
    """What came of a join; `.late` has the records that came too late for it."""

    @property
    def late(self) -> KeyedStream[Any]:
        """The records that came too late for any pair, as they were, with their keys. They are counted in any case."""
        return KeyedStream(self._flow, Input(self._input.step, 1))


def stream_of(flow: Flow, source: Input) -> Stream[Any]:
    """The stream that comes out of a step, with or without keys."""
    keyed = flow._partitionings[source.step] is not Partitioning.NONE
    return KeyedStream(flow, source) if keyed else Stream(flow, source)
