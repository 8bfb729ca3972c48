"""What an executor measures about itself while it runs."""

from __future__ import annotations

import math
from collections import Counter

_STEP = math.log(1.05)


class LatencyHistogram:
    """Quantiles of many durations in little space: buckets grow by 5 %, so a quantile is within 5 % of the truth."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float, count: int) -> None:
        """`count` records took `seconds`."""
        self._buckets[math.ceil(math.log(max(seconds, 1e-7)) / _STEP)] += count

    def quantiles(self, *shares: float) -> list[float] | None:
        """The given quantiles in seconds; `None` when nothing was added."""
        total = self._buckets.total()
        if not total:
            return None
        result, seen, wanted = [], 0, sorted(shares)
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            while wanted and seen >= wanted[0] * total:
                result.append(math.exp(bucket * _STEP))
                wanted.pop(0)
        return result

    def clear(self) -> None:
        """Start a new interval."""
        self._buckets.clear()
