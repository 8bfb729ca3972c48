"""What an executor measures of its keys, for the decision to split it: records per key group, and the hottest key."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from penstock.errors import UsageError
from penstock.exchange.keys import key_group
from penstock.flow.hot_keys import HotKey, HotKeys

_MEMO_KEYS = 1 << 12


class KeyReport(NamedTuple):
    """The load of an executor by keys."""

    groups: dict[int, float]
    """Key group -> records per second."""
    hot: HotKey | None
    hot_group: int | None


class KeyLoad:
    """Looks at one key of `stride`, on average, from a random place of each batch (streams have rhythms). It is a
    measurement: it draws nothing that a result depends on, and a standby need not repeat it."""

    __slots__ = ("_groups", "_hot", "_memo", "_random", "stride")

    def __init__(self, stride: int = 16, size: int = 64, seed: int = 0) -> None:
        if stride < 1:
            raise UsageError(f"every {stride}th key cannot be looked at", remedy="give a stride of 1 or more")
        self.stride = stride
        self._hot = HotKeys(size)
        self._groups: Counter[int] = Counter()
        self._memo: dict[Hashable, int] = {}
        self._random = random.Random(seed)

    def observe(self, keys: Sequence[Hashable]) -> None:
        """The keys of a batch."""
        first = self._random.randrange(self.stride) if self.stride > 1 else 0
        sample = keys[first :: self.stride]
        if not sample:
            return
        self._hot.add(sample)
        memo = self._memo
        if len(memo) > _MEMO_KEYS:
            memo.clear()
        for key in sample:
            group = memo.get(key)
            if group is None:
                group = memo[key] = key_group(key)
            self._groups[group] += self.stride

    def report(self, seconds: float) -> KeyReport:
        """What was seen over the last `seconds`. Begins anew; of the hottest keys half of the past still counts."""
        rates = {group: count / seconds for group, count in sorted(self._groups.items())} if seconds > 0 else {}
        self._groups.clear()
        top = self._hot.top()
        self._hot.fade()
        return KeyReport(rates, top[0], key_group(top[0].key)) if top else KeyReport(rates, None, None)
