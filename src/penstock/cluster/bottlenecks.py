"""Which resource of which node is the limit (SYSTEMS Z2, Z3): what stays over its bound for some time; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.cluster.measuring import Measurement
from penstock.cluster.view import Member
from penstock.settings import Balancing

FULL_BUFFER = 0.8
"""The share of what may wait that is too much for long."""
UNITS = {"cpu": "cores", "worker": "cores", "memory": "bytes", "network": "bytes/s", "buffer": "bytes"}


@dataclass(frozen=True, slots=True)
class Use:
    """How much of a resource is used, and how much may be."""

    used: float
    bound: float

    @property
    def over(self) -> bool:
        """Whether it is too much."""
        return self.used > self.bound


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """A resource that has been used beyond its bound for some time."""

    node: str
    resource: str
    """`cpu`, `memory`, `network`, `buffer`, or `worker`: the one loop of a group's worker."""
    use: Use
    detail: str = ""
    """The group, for `worker`; the nodes that share a machine, for `cpu` and `memory`."""

    def __str__(self) -> str:
        where = f" ({self.detail})" if self.detail else ""
        return (
            f"{self.resource}{where}: {_amount(self.use.used, self.resource)} of"
            f" {_amount(self.use.bound, self.resource)} {UNITS[self.resource]}"
        )


def _amount(value: float, resource: str) -> str:
    return f"{value:.2f}" if UNITS[resource] == "cores" else f"{value:,.0f}"


Uses = Mapping[tuple[str, str, str], Use]
"""(node, resource, detail) -> use."""


def uses(
    measurement: Measurement, members: Mapping[str, Member], settings: Balancing
) -> dict[tuple[str, str, str], Use]:
    """What of every live node is used and bounded. Nodes of one machine share its CPU and memory."""
    found: dict[tuple[str, str, str], Use] = {}
    machines: dict[str, list[str]] = {}
    for name in sorted(measurement.nodes):
        machines.setdefault(members[name].lease.get("host") or name, []).append(name)
    for machine, names in machines.items():
        detail = f"machine {machine}" if len(names) > 1 else ""
        cpu = sum(measurement.nodes[name].cpu for name in names)
        memory = sum(measurement.nodes[name].memory for name in names)
        for name in names:
            vector, member = measurement.nodes[name], members[name]
            bounds = (
                ("cpu", detail, cpu, member.number("cpus") * settings.fill),
                ("memory", detail, memory, member.number("memory") * settings.fill),
                ("network", "", vector.network, settings.network * settings.fill),
                ("buffer", "", vector.buffer, vector.room * FULL_BUFFER),
            )
            found |= {(name, what, why): Use(used, bound) for what, why, used, bound in bounds if bound > 0}
    if settings.gamma is not None:
        found |= {
            (node, "worker", f"group {group}"): Use(used, settings.gamma)
            for (node, group), used in measurement.workers.items()
            if node in measurement.nodes
        }
    return found


class Bottlenecks:
    """Remembers since when resources are over their bounds. The caller tells the time, in seconds of one clock."""

    def __init__(self, sustained: float) -> None:
        self._sustained = sustained
        self._since: dict[tuple[str, str, str], float] = {}
        self._present: dict[tuple[str, str, str], Bottleneck] = {}

    def watch(self, now: float, present: Uses) -> tuple[tuple[Bottleneck, ...], tuple[Bottleneck, ...]]:
        """The bottlenecks that there are from now on, and those that are over. A resource that is within its bound
        once begins anew."""
        self._since = {where: self._since.get(where, now) for where, use in present.items() if use.over}
        ended = tuple(self._present.pop(where) for where in sorted(self._present.keys() - self._since.keys()))
        begun = []
        for where, since in sorted(self._since.items()):
            node, resource, detail = where
            found = Bottleneck(node, resource, present[where], detail)
            if where in self._present:
                self._present[where] = found
            elif now - since >= self._sustained:
                self._present[where] = found
                begun.append(found)
        return tuple(begun), ended

    def of(self, node: str) -> tuple[Bottleneck, ...]:
        """Those of a node at this moment."""
        return tuple(found for where, found in sorted(self._present.items()) if where[0] == node)

    def all(self) -> tuple[Bottleneck, ...]:
        """All of this moment, by node."""
        return tuple(found for _, found in sorted(self._present.items()))
