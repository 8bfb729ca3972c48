"""The tables of W6."""

from __future__ import annotations

import statistics

from bench.limit_w6 import UNITS
from bench.w6 import Managed

ADD, ONLINE, ANSWER = "add", "online: first record", "online: answer"
Table = list[list[str]]

NOTES = {
    ADD: "package of 2 kB, verified in a throw-away process on every node; answered when every node has it",
    ONLINE: "warm worker, environment there, configuration known; source on one node, sink on another if there are two",
    ANSWER: "the same, until the answer that it runs",
    "online on every node: first record": "as many executors per stage as nodes",
    "online, new configuration: first record": "verified anew on every node before",
    "offline": "answered when its executors are gone",
    "update": "another package of 2 kB",
    "rollback": "to the package before",
    "delete": "answered when no node has it in use",
    "add, new environment": "carries a wheel that no node has seen: uv makes an environment on every node",
    "add, known environment": "another model that carries the same wheel",
    "online in its own environment, first time: first record": "no worker is warm for it: every node starts one",
    "online in its own environment, again: first record": "every node starts one again",
}
"""Rows in order, and how each is meant; what is not named is not shown."""
OBSERVED = {
    "processes": ("processes of the node", 0),
    "descriptors": ("file descriptors of the agent", 0),
    "memory": ("resident memory of the agent, MB", 1),
    "disk": ("the node's files, kB", 0),
    "redis": ("memory of Valkey, MB", 2),
    "online": ("online to first record, ms", 0),
    "offline": ("offline to the answer, ms", 0),
}
"""What is observed over cycles: its name for people, and decimals."""


def operations_table(managed: Managed, sizes: list[int]) -> Table:
    """A row per operation and number of nodes."""
    rows = [["operation", "nodes", "median ms", "spread", "by hand", "Penstock is", "how"]]
    for what, note in NOTES.items():
        for nodes in sizes:
            values = managed.penstock.get((what, nodes))
            if not values:
                continue
            median, by_hand = statistics.median(values), managed.by_hand.get((what, nodes))
            limit = statistics.median(by_hand) if by_hand else None
            rows.append(
                [
                    what, str(nodes), f"{median:.0f}", f"{min(values):.0f} to {max(values):.0f}",
                    "" if limit is None else f"{limit:.1f}", "" if limit is None else f"{median / limit:.1f} x", note,
                ]
            )  # fmt: skip
            note = ""
    return rows


def units_table(managed: Managed) -> Table:
    """What the pieces cost."""
    rows = [["unit", "median ms", "what it is"]]
    rows += [[u, f"{statistics.median(managed.units[u]):.2f}", text] for u, text in UNITS.items() if managed.units[u]]
    return rows


def cycles_table(managed: Managed) -> Table:
    """What a node holds before and after many cycles, at rest, and how it went on in the second half. Times: medians of
    the first and of the last quarter."""
    rows = [["over cycles of online and offline", "before", "after", "second half", "growth per 100 cycles"]]
    rested = [each for each in managed.cycles if each["rested"]]
    going = [each for each in managed.cycles if not each["rested"]]
    if len(rested) < 2 or len(going) < 8:
        return rows
    before, after, half = rested[0], rested[-1], going[len(going) // 2 :]
    for name, (text, digits) in OBSERVED.items():
        values = [each[name] for each in half]
        if name in ("online", "offline"):
            quarter = max(1, len(going) // 4)
            first, last = (
                statistics.median(each[name] for each in some) for some in (going[:quarter], going[-quarter:])
            )
            growth = ""
        else:
            first, last = before[name], after[name]
            growth = f"{_growth([each[name] for each in going]) * 100:+.{digits + 1}f}"
        spread = f"{min(values):.{digits}f} to {max(values):.{digits}f}"
        rows.append([text, f"{first:.{digits}f}", f"{last:.{digits}f}", spread, growth])
    return rows


def _growth(values: list[float]) -> float:
    """Per cycle, from the second quarter to the last one; medians, as single cycles say little."""
    quarter = len(values) // 4
    second, last = values[quarter : 2 * quarter], values[-quarter:]
    return (statistics.median(last) - statistics.median(second)) / (2 * quarter)


def targets(managed: Managed) -> list[tuple[str, float, float]]:
    """What we must reach: its text, the most that it may be, and what it was; milliseconds."""
    rows = []
    added = managed.median(ADD, 8)
    if added is not None:
        rows.append(("W6: add over 8 nodes", 1000.0, added))
    for nodes in sorted({nodes for what, nodes in managed.penstock if what == ONLINE}):
        online = managed.median(ONLINE, nodes)
        if online is not None:
            many = f"{nodes} node{'s' if nodes > 1 else ''}"
            rows.append((f"W6: online with a warm worker to the first record, {many}", 150.0, online))
    return rows
