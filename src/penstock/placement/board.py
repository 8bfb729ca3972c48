"""A plan in the making: items on seats, by number, with everything that a search asks kept up to date.

Items are executors and seats are workers; in the second phase of `penstock.placement.traffic` items are workers and
seats are nodes. Putting an item somewhere costs a step per neighbour; asking what a move would gain costs one step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from penstock.placement.cost import move_bytes, rate
from penstock.placement.feasible import TOLERANCE, bound_of, usable
from penstock.placement.limits import most_executors, workers_counted
from penstock.placement.plan import ExecutorKey, Placement, Problem, WorkerSlot

Flows = list[dict[int, float]]
"""item -> its neighbours -> bytes per second, both directions together."""


@dataclass
class Items:
    """What is to be placed."""

    flows: Flows
    cpu: Sequence[float]
    memory: Sequence[float]
    apart: Sequence[Iterable[int]]
    """item -> those that must be on other nodes."""
    home: Sequence[int]
    """Where each runs, or -1."""
    price: Sequence[float]
    """What being elsewhere than at home costs, in bytes per second."""
    pinned: frozenset[int] = frozenset()


@dataclass
class Seats:
    """Where items can be; several seats can be on one node."""

    node: Sequence[int]
    most: Sequence[int]
    """Items per seat."""
    gamma: Sequence[float]
    """CPU per seat."""
    cpu: Sequence[float]
    """CPU per node, and so on."""
    memory: Sequence[float]
    network: Sequence[float]
    of_node: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.of_node = [[] for _ in self.cpu]
        for seat, node in enumerate(self.node):
            self.of_node[node].append(seat)


def slack(bound: float) -> float:
    """The bound, with room for rounding."""
    return bound * (1 + TOLERANCE) + TOLERANCE


class Board:
    """Which item is on which seat."""

    def __init__(self, items: Items, seats: Seats) -> None:
        self.items, self.seats = items, seats
        count = len(items.flows)
        self.at = [-1] * count
        self.affinity: Flows = [{} for _ in range(count)]
        """item -> node -> traffic with what is there."""
        self.on: list[set[int]] = [set() for _ in seats.node]
        self.seat_cpu = [0.0] * len(seats.node)
        self.cpu = [0.0] * len(seats.cpu)
        self.memory = [0.0] * len(seats.cpu)
        self.network = [0.0] * len(seats.cpu)
        self.least_flow = 1e-12 * sum(sum(flows.values()) for flows in items.flows)
        """Smaller differences are rounding."""
        self.metered = any(bound != inf for bound in seats.network)
        self._most_cpu, self._most_memory = [slack(b) for b in seats.cpu], [slack(b) for b in seats.memory]
        self._most_network, self._gamma = [slack(b) for b in seats.network], [slack(b) for b in seats.gamma]

    def node_of(self, item: int) -> int:
        """The node that an item is on, or -1."""
        seat = self.at[item]
        return -1 if seat < 0 else self.seats.node[seat]

    def put(self, item: int, seat: int) -> None:
        """Place an item that is nowhere."""
        node = self.seats.node[seat]
        self.at[item] = seat
        self.on[seat].add(item)
        self.seat_cpu[seat] += self.items.cpu[item]
        self.cpu[node] += self.items.cpu[item]
        self.memory[node] += self.items.memory[item]
        affinity = self.affinity
        for other, flow in self.items.flows[item].items():
            own = affinity[other]
            own[node] = own.get(node, 0.0) + flow
        if self.metered:
            self._meter(item, node, 1.0)

    def take(self, item: int) -> int:
        """Take an item off; where it was."""
        seat = self.at[item]
        node = self.seats.node[seat]
        if self.metered:
            self._meter(item, node, -1.0)
        self.at[item] = -1
        self.on[seat].discard(item)
        self.seat_cpu[seat] -= self.items.cpu[item]
        self.cpu[node] -= self.items.cpu[item]
        self.memory[node] -= self.items.memory[item]
        affinity, least = self.affinity, self.least_flow
        for other, flow in self.items.flows[item].items():
            own = affinity[other]
            left = own.get(node, 0.0) - flow
            if left > least:
                own[node] = left
            else:
                own.pop(node, None)
        return seat

    def move(self, item: int, seat: int) -> None:
        """From wherever it is."""
        self.take(item)
        self.put(item, seat)

    def _meter(self, item: int, node: int, sign: float) -> None:
        for other, flow in self.affinity[item].items():
            if other != node:
                self.network[other] += sign * flow
                self.network[node] += sign * flow

    def fits(self, item: int, seat: int) -> bool:
        """Whether the item could be on the seat without breaking a limit there."""
        node = self.seats.node[seat]
        cpu = self.items.cpu[item]
        if len(self.on[seat]) >= self.seats.most[seat] or self.seat_cpu[seat] + cpu > self._gamma[seat]:
            return False
        here = self.node_of(item)
        if here == node:
            return True
        if self.cpu[node] + cpu > self._most_cpu[node]:
            return False
        if self.memory[node] + self.items.memory[item] > self._most_memory[node]:
            return False
        if any(self.node_of(other) == node for other in self.items.apart[item]):
            return False
        return not self.metered or self._fits_network(item, here, node)

    def _fits_network(self, item: int, here: int, node: int) -> bool:
        own = self.affinity[item]
        degree = sum(own.values())
        if self.network[node] + degree - 2 * own.get(node, 0.0) > self._most_network[node]:
            return False
        if here < 0:
            return all(
                self.network[other] + flow <= self._most_network[other] for other, flow in own.items() if other != node
            )
        return self.network[here] + 2 * own.get(here, 0.0) - degree <= self._most_network[here]

    def seat_on(self, item: int, node: int) -> int:
        """The seat of a node where the item fits best: its home, else the emptiest; -1 when there is none."""
        home, here = self.items.home[item], self.at[item]
        best, rank = -1, (inf, 0)
        for seat in self.seats.of_node[node]:
            if seat == here or not self.fits(item, seat):
                continue
            if seat == home:
                return seat
            if (found := (self.seat_cpu[seat], len(self.on[seat]))) < rank:
                best, rank = seat, found
        return best

    def away(self, item: int, seat: int) -> float:
        """The price of having the item there."""
        home = self.items.home[item]
        return 0.0 if home < 0 or home == seat else self.items.price[item]

    def change(self, item: int, node: int, seat: int) -> float:
        """How the cost changes when a placed item goes to a seat on a node."""
        here = self.at[item]
        own, before = self.affinity[item], self.seats.node[here]
        difference = self.away(item, seat) - self.away(item, here)
        return difference if node == before else difference + own.get(before, 0.0) - own.get(node, 0.0)

    def cost(self) -> float:
        """Traffic between nodes plus the price of what is not at home."""
        total = 0.0
        for item, seat in enumerate(self.at):
            if seat >= 0:
                own, node = self.affinity[item], self.seats.node[seat]
                total += (sum(own.values()) - own.get(node, 0.0)) / 2 + self.away(item, seat)
        return total

    def strain_of(self, seat: int) -> float:
        """By how much a seat breaks its limits, as a share of them."""
        most = self.seats.most[seat]
        found = max(0, len(self.on[seat]) - most) / most
        if self.seat_cpu[seat] > self._gamma[seat]:
            found += self.seat_cpu[seat] / self.seats.gamma[seat] - 1
        return found

    def strain_on(self, node: int) -> float:
        """By how much a node breaks its limits, as a share of them; those of its seats not included."""
        found = 0.0
        for used, most, bound in (
            (self.cpu[node], self._most_cpu[node], self.seats.cpu[node]),
            (self.memory[node], self._most_memory[node], self.seats.memory[node]),
            (self.network[node], self._most_network[node], self.seats.network[node]),
        ):
            if used > most:
                found += (used - bound) / max(bound, TOLERANCE)
        for seat in self.seats.of_node[node]:
            for item in self.on[seat]:
                found += sum(0.5 for other in self.items.apart[item] if self.node_of(other) == node)
        return found

    def strain(self) -> float:
        """By how much the whole plan breaks its limits; 0 = it keeps them."""
        return sum(map(self.strain_of, range(len(self.on)))) + sum(map(self.strain_on, range(len(self.cpu))))


@dataclass(frozen=True)
class Names:
    """What the numbers of a board mean."""

    executors: tuple[ExecutorKey, ...]
    workers: tuple[WorkerSlot, ...]
    nodes: tuple[str, ...]

    def placement(self, board: Board) -> Placement:
        """The plan that a board holds."""
        return Placement({self.executors[i]: self.workers[seat] for i, seat in enumerate(board.at) if seat >= 0})

    def fill(self, board: Board, placement: Placement) -> Board:
        """Put on an empty board what a plan says, as far as its workers may be used."""
        number = {worker: i for i, worker in enumerate(self.workers)}
        for i, executor in enumerate(self.executors):
            seat = number.get(placement.workers[executor], -1) if executor in placement.workers else -1
            if seat >= 0:
                board.put(i, seat)
        return board


def indexed(problem: Problem) -> tuple[Names, Items, Seats]:
    """A problem as numbers."""
    workers = usable(problem)
    nodes = tuple(sorted({worker.node for worker in workers}))
    names = Names(tuple(sorted(problem.executors)), workers, nodes)
    at = {node: i for i, node in enumerate(nodes)}
    counted = workers_counted(len(problem.executors), len(workers))
    most = most_executors(len(problem.executors), counted, problem.limits.alpha)
    seats = Seats(
        node=[at[worker.node] for worker in workers],
        most=[most] * len(workers),
        gamma=[problem.limits.gamma] * len(workers),
        cpu=[bound_of(problem, node, "cpu") for node in nodes],
        memory=[bound_of(problem, node, "memory") for node in nodes],
        network=[bound_of(problem, node, "network") for node in nodes],
    )
    return names, _items(problem, names), seats


def _items(problem: Problem, names: Names) -> Items:
    number = {executor: i for i, executor in enumerate(names.executors)}
    worker = {slot: i for i, slot in enumerate(names.workers)}
    running = {} if problem.current is None else problem.current.workers
    flows: Flows = [{} for _ in names.executors]
    for (producer, consumer), traffic in sorted(problem.traffic.items(), key=lambda entry: entry[0]):
        one, other = number.get(producer, -1), number.get(consumer, -1)
        weight = rate(traffic)
        if one >= 0 and other >= 0 and one != other and weight > 0:
            flows[one][other] = flows[one].get(other, 0.0) + weight
            flows[other][one] = flows[other].get(one, 0.0) + weight
    apart: list[set[int]] = [set() for _ in names.executors]
    for first, second in problem.apart:
        if first in number and second in number:
            apart[number[first]].add(number[second])
            apart[number[second]].add(number[first])
    loads = [problem.load.get(executor) for executor in names.executors]
    return Items(
        flows=flows,
        cpu=[0.0 if load is None else load.cpu for load in loads],
        memory=[0.0 if load is None else float(load.memory) for load in loads],
        apart=apart,
        home=[worker.get(running[executor], -1) if executor in running else -1 for executor in names.executors],
        price=[move_bytes(problem, executor) / problem.horizon for executor in names.executors],
        pinned=frozenset(number[executor] for executor in problem.pinned if executor in number),
    )
