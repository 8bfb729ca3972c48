"""Aggregates that would need every value to be exact: exact up to a limit, then a sketch of bounded size.

Both are functions of the set of values alone, whatever their order and however accumulators were merged: the exact
form is left when the limit is passed, and the sketches are counts and maxima, which commute.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import xxhash

from penstock.errors import FlowError
from penstock.flow.accumulators import Aggregate, Needs

__all__ = ["DistinctCount", "Quantile"]

EXACT_VALUES = 256
"""So many values are kept as they are before a quantile becomes a sketch."""
RELATIVE_ERROR = 0.01
"""A sketched quantile differs from the exact one by at most this share of it."""
BUCKETS = 2048
"""Values of one sign whose sizes differ by more than `exp(2048 * 0.02)`, about 6e17, share the lowest bucket."""

_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA = math.log(_GAMMA)


@dataclass(frozen=True)
class Quantile(Aggregate):
    """The value of which a share `q` of the values is not greater: the one at place `floor(q * (n - 1))` in order.

    Exact for up to `EXACT_VALUES` values, then within `RELATIVE_ERROR`: a DDSketch (Masson, Rim and Lee, VLDB 2019,
    section 2) of at most `BUCKETS` buckets per sign. The accumulator is the list of values, or
    `{"n": count, "zero": count, "pos": {bucket: count}, "neg": …, "min": least, "max": greatest}`.
    """

    needs: ClassVar[Needs] = Needs.NUMBERS

    q: float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.q, bool) or not isinstance(self.q, (int, float)) or not 0 <= self.q <= 1:
            raise FlowError(None, f"quantile({self.q!r}) is not between 0 and 1", remedy="write quantile('v', 0.95)")

    def init(self) -> list[Any]:
        return []

    def add(self, acc: Any, values: list[Any], times: Sequence[int]) -> Any:
        if isinstance(acc, list):
            acc.extend(values)
            if len(acc) <= EXACT_VALUES:
                return acc
            acc, values = {"n": 0, "zero": 0, "pos": {}, "neg": {}, "min": acc[0], "max": acc[0]}, acc
        if values:
            acc["n"] += len(values)
            acc["min"], acc["max"] = min(acc["min"], min(values)), max(acc["max"], max(values))
            acc["zero"] += values.count(0)
            _count(acc["pos"], [v for v in values if v > 0])
            _count(acc["neg"], [-v for v in values if v < 0])
        return acc

    def merge(self, acc: Any, other: Any) -> Any:
        if isinstance(other, list):
            return self.add(acc, other, ())
        if isinstance(acc, list):
            copy = {**other, "pos": dict(other["pos"]), "neg": dict(other["neg"])}
            return self.add(copy, acc, ())
        for part in ("n", "zero"):
            acc[part] += other[part]
        acc["min"], acc["max"] = min(acc["min"], other["min"]), max(acc["max"], other["max"])
        for sign in ("pos", "neg"):
            _merge_buckets(acc[sign], other[sign])
        return acc

    def result(self, acc: Any) -> Any:
        if isinstance(acc, list):
            return sorted(acc)[math.floor(self.q * (len(acc) - 1))] if acc else None
        place = math.floor(self.q * (acc["n"] - 1))
        negative = sum(acc["neg"].values())
        if place < negative:
            estimate = -_value_at(acc["neg"], negative - 1 - place)
        elif place < negative + acc["zero"]:
            return 0.0
        else:
            estimate = _value_at(acc["pos"], place - negative - acc["zero"])
        return min(max(estimate, float(acc["min"])), float(acc["max"]))

    def dump(self, acc: Any) -> Any:
        if isinstance(acc, list):
            return acc
        return {**acc, "pos": list(map(list, acc["pos"].items())), "neg": list(map(list, acc["neg"].items()))}

    def load(self, plain: Any) -> Any:
        if isinstance(plain, list):
            return plain
        return {**plain, "pos": dict(plain["pos"]), "neg": dict(plain["neg"])}


def _count(buckets: dict[int, int], sizes: list[float]) -> None:
    """Count positive numbers. Bucket i holds those in (gamma^(i-1), gamma^i]."""
    if sizes:
        log, ceil = math.log, math.ceil
        _merge_buckets(buckets, Counter([ceil(log(min(size, 1.7e308)) / _LOG_GAMMA) for size in sizes]))


def _merge_buckets(buckets: dict[int, int], more: dict[int, int]) -> None:
    """Add counts, then fold what lies too far below the highest bucket into the lowest that is kept. The bound depends
    on the highest bucket alone, so the outcome does not depend on the order."""
    for index, count in more.items():
        buckets[index] = buckets.get(index, 0) + count
    if not buckets:
        return
    lowest = max(buckets) - BUCKETS + 1
    for index in [index for index in buckets if index < lowest]:
        buckets[lowest] = buckets.get(lowest, 0) + buckets.pop(index)


def _value_at(buckets: dict[int, int], place: int) -> float:
    """The middle (in relative terms) of the bucket that holds the value at `place` in ascending order."""
    seen = 0
    for index in sorted(buckets):
        seen += buckets[index]
        if seen > place:
            break
    return math.exp(index * _LOG_GAMMA) * 2 / (_GAMMA + 1)


EXACT_DISTINCT = 512
"""So many different values are counted exactly."""
_PRECISION = 12
REGISTERS = 1 << _PRECISION
"""Bytes of a HyperLogLog; its standard error is 1.04 / sqrt(4096), about 1.6 %."""
_REST_BITS = 64 - _PRECISION


@dataclass(frozen=True)
class DistinctCount(Aggregate):
    """How many different values. Equal numbers are the same value whatever their type.

    Exact for up to `EXACT_DISTINCT` values (as a set of 64-bit hashes), then a HyperLogLog of 4096 registers with the
    estimator of Ertl, "New cardinality estimation algorithms for HyperLogLog sketches" (2017), section 2: a standard
    error of 1.6 %. The accumulator is the set, or the registers as a bytearray.
    """

    def init(self) -> Any:
        return set()

    def add(self, acc: Any, values: list[Any], times: Sequence[int]) -> Any:
        return self._add_hashes(acc, set(map(_hash, values)))

    def merge(self, acc: Any, other: Any) -> Any:
        if isinstance(other, set):
            return self._add_hashes(acc, other)
        registers = acc if isinstance(acc, bytearray) else self._add_hashes(bytearray(REGISTERS), acc)
        registers[:] = bytes(map(max, registers, other))
        return registers

    def _add_hashes(self, acc: Any, hashes: set[int]) -> Any:
        if isinstance(acc, set):
            acc |= hashes
            if len(acc) <= EXACT_DISTINCT:
                return acc
            acc, hashes = bytearray(REGISTERS), acc
        for number in hashes:
            register, rest = number >> _REST_BITS, number & ((1 << _REST_BITS) - 1)
            zeros = _REST_BITS - rest.bit_length() + 1
            if zeros > acc[register]:
                acc[register] = zeros
        return acc

    def result(self, acc: Any) -> int:
        return len(acc) if isinstance(acc, set) else round(_cardinality(acc))

    def dump(self, acc: Any) -> Any:
        return sorted(acc) if isinstance(acc, set) else bytes(acc)

    def load(self, plain: Any) -> Any:
        return set(plain) if isinstance(plain, list) else bytearray(plain)


def _hash(value: Any) -> int:
    """64 bits that depend on the value alone, in every process."""
    if isinstance(value, str):
        return xxhash.xxh3_64_intdigest(value.encode("utf-8", "surrogatepass"), 1)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return xxhash.xxh3_64_intdigest(b"%d" % value, 2)
    if isinstance(value, bytes):
        return xxhash.xxh3_64_intdigest(value, 3)
    return xxhash.xxh3_64_intdigest(repr(value).encode("utf-8", "surrogatepass"), 4)


def _cardinality(registers: bytearray) -> float:
    """Ertl's estimate from the histogram of register values."""
    histogram = Counter(registers)
    highest = _REST_BITS + 1
    total = REGISTERS * _tau(1 - histogram[highest] / REGISTERS)
    for level in range(highest - 1, 0, -1):
        total = 0.5 * (total + histogram[level])
    total += REGISTERS * _sigma(histogram[0] / REGISTERS)
    return REGISTERS * REGISTERS / (2 * math.log(2) * total)


def _sigma(x: float) -> float:
    if x == 1:
        return math.inf
    y, total, before = 1.0, x, -1.0
    while total != before:
        x *= x
        before = total
        total += x * y
        y += y
    return total


def _tau(x: float) -> float:
    if x in (0, 1):
        return 0.0
    y, total, before = 1.0, 1 - x, -1.0
    while total != before:
        x = math.sqrt(x)
        before = total
        y *= 0.5
        total -= (1 - x) ** 2 * y
    return total / 3
