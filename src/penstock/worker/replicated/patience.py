"""How long a replica waits for those who owe it an answer, each for itself."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from penstock.exchange.replica.instructions import Debtor

_FIRST, _LONGEST = 0.25, 4.0
"""Seconds without a step forward until what was not answered is said again; doubled each time."""
_CUT_AFTER = 1.0
"""With so much patience the connection itself is not trusted any more."""


@dataclass(slots=True)
class _Owing:
    mark: Hashable
    since: float
    patience: float = _FIRST


class Patience:
    """Who owes what, since when. `look` says whether somebody has not moved for too long, and which of them so often
    that their connections should be made anew."""

    def __init__(self) -> None:
        self._owing: dict[Debtor, _Owing] = {}

    def look(self, debts: Mapping[Debtor, Hashable], now: float) -> tuple[bool, set[Debtor]]:
        """See the class. `now`: monotonic seconds."""
        for settled in self._owing.keys() - debts.keys():
            del self._owing[settled]
        silent, cut = False, set()
        for debtor, mark in debts.items():
            owing = self._owing.get(debtor)
            if owing is None or owing.mark != mark:
                self._owing[debtor] = _Owing(mark, now)
            elif now > owing.since + owing.patience:
                silent = True
                if owing.patience >= _CUT_AFTER:
                    cut.add(debtor)
                owing.since, owing.patience = now, min(_LONGEST, 2 * owing.patience)
        return silent, cut
