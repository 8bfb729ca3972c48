"""MapReduce as a class: the same program over a bounded input and over a stream.

After Dean & Ghemawat, "MapReduce: Simplified Data Processing on Large Clusters" (OSDI 2004); the form without a
barrier between the phases after Chen, Dai, Huang & Zhou, "Mos" (MapReduce on streams): pairs are pushed from map to
reduce as they come, and combined on both sides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from penstock.flow.check import check_function

if TYPE_CHECKING:
    from penstock.flow.builder import Flow
    from penstock.flow.connector import Sink, Source
    from penstock.flow.steps.map_reduce import Combine

__all__ = ["MapReduce", "combiner"]


class MapReduce(ABC):
    """Derive from it and write `map` and `reduce`; `combine(key, values)` is optional.

    A bounded input ends with one `Keyed(key, result)` per key. An unbounded one gives updates, one for every key that
    a batch of records changed; the last update of a key equals the result over the same records as a bounded input.

    `combine` must be associative and give a value of the same meaning as those it was given, since it runs over parts:
    beside the map, and again beside the reduce. With it the state is one value per key; without it, all values.
    """

    @abstractmethod
    def map(self, record: Any) -> Iterable[tuple[Any, Any]]:
        """The (key, value) pairs of one record, usually by `yield`."""

    @abstractmethod
    def reduce(self, key: Any, values: list[Any]) -> Any:
        """The result of one key. `values`: those of `map`, or what `combine` made of them; in no particular order."""

    combine: ClassVar[Any] = None

    @classmethod
    def flow(cls, source: Source, sink: Sink, name: str | None = None, **options: Any) -> Flow:
        """A flow of the steps `input`, `map`, `reduce` and `output`. `name` is by default the class's; `options` are
        those of `Flow`."""
        from penstock.flow.builder import Flow

        flow = Flow(name or cls.__name__, **options)
        flow.source("input", source)._map_reduce("map", "reduce", cls).sink("output", sink)
        return flow


def combiner(step: str, program: MapReduce) -> Combine | None:
    """The program's `combine`, if it has one, after a look at its functions."""
    check_function(step, program.map, 1, what="map", generator=True)
    check_function(step, program.reduce, 2, what="reduce")
    combine: Combine | None = program.combine
    if combine is not None:
        check_function(step, combine, 2, what="combine")
    return combine
