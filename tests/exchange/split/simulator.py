"""Stages that are split and merged while records flow, in one thread, in any order that a seed asks for.

Each step does one thing that could happen next: a frame, a record or a report arrives (late, twice, out of order or not
at all), an executor works, sends, falls silent, stops for a while, or dies and goes on from what its standby has of its
log; the leader begins, gives up, is replaced by another one, and goes on leading without knowing it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from penstock.exchange.split import routing
from penstock.exchange.split.consumer import Consumer
from penstock.exchange.split.coordinator import Coordinator
from penstock.exchange.split.member import Member
from penstock.exchange.split.messages import Report
from penstock.exchange.split.producer import Producer
from penstock.exchange.split.routing import Phase, Routing

from .world import WINDOW, ConsumerNode, ExchangeError, MemberNode, Node, ProducerNode, Record, Violation, Way, group_of


class Simulation:
    """The run that belongs to a seed."""

    def __init__(self, seed: int, straggling: bool = False) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.loss = rng.choice((0.0, 0.0, 0.05, 0.15))
        self.twice = rng.choice((0.0, 0.05))
        self.window = rng.choice((1, 4, 30))
        self.protected = rng.random() < 0.75
        self.crash_chance = rng.choice((0.0, 0.003, 0.01))
        self.pause_chance = rng.choice((0.0, 0.01))
        self.doubt = rng.choice((0.0, 0.0, 0.0, 0.02))
        """How easily the leader gives up."""
        self.straggling = rng.random() < 0.2
        """Whether one producer's frames are taken late by all members but the first."""
        if straggling:
            self.straggling, self.loss, self.crash_chance, self.pause_chance, self.doubt = True, 0.0, 0.0, 0.0, 0.0
        self.shifts = rng.choice((1, 2, 4))
        self.buffer = rng.choice((3, 8, 1000))
        self.stats: Counter[str] = Counter()
        self.network: list[tuple[str, Any]] = []
        self.said: list[Report] = []
        self.ghosts: list[tuple[Any, int]] = []
        self.calm = False
        self.steps = rng.choice((300, 600, 900))
        self._build()

    def _build(self) -> None:
        rng = self.rng
        self.edges = rng.choice((1, 1, 2))
        members = rng.choice((1, 1, 2))
        keys = rng.choice((3, 8))
        self.store = record = routing.first(members)
        self.leader = Coordinator(record, 1)
        self.deposed: list[Coordinator] = []
        self.nodes: dict[str, Node] = {}
        self.producers: list[ProducerNode] = []
        for number in range(rng.choice((1, 2, 3))):
            pace = rng.choice((0.03, 0.06, 0.2))
            records = _records(rng, number, self.edges, keys)
            node = ProducerNode(f"p{number}", record, self.edges, records, self.buffer, self.protected, pace)
            self.producers.append(node)
            self.nodes[node.name] = node
        for number in range(members):
            self._member(f"m{number}", record)
        self.consumer = ConsumerNode(record, self.protected)
        self.nodes["c"] = self.consumer
        self.numbers = members

    def _member(self, name: str, record: Routing, newcomer: bool = False) -> MemberNode:
        ways: list[Way] = [(p.name, edge, name) for p in self.producers for edge in range(self.edges)]
        node = MemberNode(name, record, ways, self.protected, newcomer)
        if self.straggling and name != "m0":
            node.slow = {way: 0.98 for way in ways if way[0] == self.producers[-1].name}
        self.nodes[name] = node
        return node

    # ---- network ----------------------------------------------------------------------------------------------------

    def put(self, target: str, what: Any) -> None:
        if not self.calm:
            if self.rng.random() < self.loss:
                return
            if self.rng.random() < self.twice:
                self.network.append((target, what))
        self.network.append((target, what))

    def deliver(self) -> bool:
        if not self.network:
            return False
        place = 0 if self.calm else int(self.rng.random() * min(len(self.network), self.window))
        target, what = self.network.pop(place)
        if target == "leader":
            if not self.calm and self.rng.random() < self.twice:
                what = self.rng.choice(self.said)  # a very old one
            self.write(self.leader, self.leader.on_report(what))
            return True
        node = self.nodes[target]
        if node.gone:
            return True
        if node.paused:
            self.network.append((target, what))
        elif isinstance(what, Routing):
            node.machine.on_record(what)
            if what.shift is not None and (self.calm or self.rng.random() < 0.95):
                node.machine.connected(what.shift.id)
        else:
            node.receive(*what)
        return True

    def transmit(self, node: Node) -> None:
        for way, number, frame in node.transmit():
            self.put(way[2], (way, number, frame))

    def report(self, reports: list[Report]) -> None:
        for report in reports:
            self.said.append(report)
            self.put("leader", report)

    def silence(self, node: Node) -> None:
        """Whatever was not answered is said again."""
        for way in node.outs:
            consumer = self.nodes[way[2]]
            node.sent[way] = min(node.sent.get(way, 0), len(consumer.got.get(way, ())))
        node.machine.silence()

    # ---- the leader -------------------------------------------------------------------------------------------------

    def write(self, leader: Coordinator, new: Routing | None) -> bool:
        """Compare-and-set. Whoever does not lead any more has an old record, or else does no harm."""
        while new is not None:
            if leader.record.epoch != self.store.epoch:
                self.stats["compared and not set"] += 1
                return False
            if new.epoch <= self.store.epoch:
                raise Violation(f"epoch {new.epoch} follows {self.store.epoch}")
            self.store = new
            self.stats[new.phase.value if new.phase else "finished"] += 1
            self.stats["committed under way"] += new.phase is Phase.COMMITTED and not self.calm
            self._written(new)
            new = leader.on_record(new)
        return True

    def _written(self, record: Routing) -> None:
        shift = record.shift
        if shift is not None and record.phase is Phase.PREPARING and shift.newcomer:
            self._member(shift.newcomer, record, newcomer=True)
        elif shift is not None and record.phase is Phase.ABANDONED and shift.newcomer:
            self.nodes[shift.newcomer].gone = True
        self.announce()

    def announce(self) -> None:
        for name, node in self.nodes.items():
            if not node.gone:
                self.put(name, self.store)

    def lead(self) -> None:
        rng, record = self.rng, self.store
        if self.leader.record.epoch < record.epoch:
            self.write(self.leader, self.leader.on_record(record))
        elif record.shift is None and not self.calm and rng.random() < 0.3 and self._may_begin():
            self.begin()
        elif rng.random() < self.doubt and not self.calm:
            self.write(self.leader, self.leader.give_up())
        elif rng.random() < 0.05 and not self.calm:
            self._depose()
        elif rng.random() < 0.3 or self.calm:
            self.announce()

    def _may_begin(self) -> bool:
        return self.shifts > 0 and not all(node.ended for node in self.producers)

    def _depose(self) -> None:
        self.deposed.append(self.leader)
        self.leader = Coordinator(self.store, (self.leader.term or 0) + 1)
        self.stats["leader replaced"] += 1

    def begin(self) -> None:
        rng, record = self.rng, self.store
        giver = rng.choice(record.executors)
        owned = record.groups(giver)
        others = [executor for executor in record.executors if executor != giver]
        parties = [node.name for node in self.producers] + [f"m{giver}", "c"]
        if others and rng.random() < 0.5:
            taker, newcomer = rng.choice(others), ""
            groups = owned if rng.random() < 0.7 else owned[: len(owned) // 2]
            parties.append(f"m{taker}")
        else:
            taker, newcomer = self.numbers, f"m{self.numbers}"
            self.numbers += 1
            groups = tuple(group for group in owned if rng.random() < 0.5)
        if not groups:
            return
        self.shifts -= self.write(self.leader, routing.began(record, giver, taker, groups, parties, newcomer))

    # ---- steps ------------------------------------------------------------------------------------------------------

    def run(self) -> Simulation:
        """To the end of the input. Raises `Violation`."""
        try:
            for _ in range(self.steps):
                self.step()
            self.drain()
        except (ExchangeError, KeyError, IndexError, AssertionError) as error:
            if isinstance(error, Violation):
                raise
            raise Violation(f"a machine broke: {error!r}") from error
        self.check()
        return self

    def step(self) -> None:
        rng = self.rng
        dice = rng.random()
        if dice < 0.3:
            for _ in range(rng.randint(1, 6)):
                self.deliver()
        elif dice < 0.36:
            self.lead()
        elif dice < 0.37 and self.deposed:
            old = rng.choice(self.deposed)  # it does not know that it was replaced
            if old.record.epoch == self.store.epoch and old.record.shift is not None:
                self.write(old, old.give_up() if rng.random() < self.doubt else old.next())
            else:
                self.write(old, old.next())
        elif dice < 0.38 and self.ghosts:
            machine, secured = rng.choice(self.ghosts)
            machine.on_record(self.store)
            self.report(machine.turn(secured))
        else:
            alive = [node for node in self.nodes.values() if not node.gone]
            for node in rng.sample(alive, min(len(alive), 2)):
                self._act(node)

    def _act(self, node: Node) -> None:
        rng = self.rng
        if node.paused:
            node.paused = rng.random() > 0.1
            return
        dice = rng.random()
        crashes = self.crash_chance * (4 if self.store.phase is Phase.COMMITTED else 1)
        if dice < crashes:
            self.crash(node)
        elif dice < crashes + self.pause_chance:
            node.paused = True
            self.stats["paused"] += 1
        elif dice < 0.96:
            for _ in range(rng.randint(0, 5)):
                node.work(rng)
            if rng.random() < 0.7:
                node.acknowledge(rng)
            if rng.random() < 0.7:
                self.transmit(node)
                self.report(node.turn())
        elif dice < 0.98 and node.protected:
            node.save()
        else:
            self.silence(node)

    def crash(self, node: Node) -> None:
        """A newcomer may have no standby, or none that is complete yet: then the leader gives up."""
        shift = self.store.shift
        rng = self.rng
        phase = "" if self.store.phase is None else f" while {self.store.phase.value}"
        role = {"p": "producer", "c": "consumer"}.get(node.name[0], "member")
        alone = not self.protected or self.store.phase is Phase.PREPARING
        if shift is not None and shift.newcomer == node.name and self.store.undecided and alone:
            if rng.random() < 0.3:
                self.stats["newcomer lost"] += 1
                self.leader.on_record(self.store)
                self.write(self.leader, self.leader.give_up())
            return
        if not self.protected:
            return  # nobody could go on in its place
        if shift is not None and f"m{shift.giver}" == node.name:
            role = "giver"
        elif shift is not None and f"m{shift.taker}" == node.name:
            role = "taker"
        self.stats[f"{role} failed over{phase}"] += 1
        self.ghosts.append((node.machine, node.acked))
        node.fail_over(rng, self._maker(node))

    def _maker(self, node: Node) -> Callable[[], Any]:
        name, record = node.name, self.store
        if isinstance(node, ProducerNode):
            return lambda: Producer(name, record, range(self.edges), self.buffer)
        if isinstance(node, MemberNode):
            newcomer = node.started[3].taker.newcomer
            return lambda: Member(name, record, range(len(node.ways)), newcomer=newcomer)
        return lambda: Consumer(name, record)

    # ---- the end ----------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Nothing bad happens any more: everything must come to its end."""
        self.calm = True
        for node in self.nodes.values():
            node.paused = False
        for turn in range(100):
            self.lead()
            if turn == 40 and self.store.undecided:
                self._too_late()
            for node in list(self.nodes.values()):
                if not node.gone:
                    self._settle(node, turn)
            while self.deliver():
                pass
            if self.done():
                self.stats["turns"] += turn
                return
        raise Violation("no end in sight: " + self.describe())

    def _too_late(self) -> None:
        """The leader's deadline: a giver that had come to its end before the barriers waits for ever."""
        shift = self.store.shift
        assert shift is not None
        giver = self.nodes[f"m{shift.giver}"]
        if self.store.phase is Phase.PREPARING or not self.done_with(giver):
            raise Violation("the shift does not go on: " + self.describe())
        self.write(self.leader, self.leader.give_up())
        self.stats["deadline"] += 1

    def done_with(self, node: Node) -> bool:
        assert isinstance(node, MemberNode)
        return set(node.lanes.values()) == {1_000_000}

    def _settle(self, node: Node, turn: int) -> None:
        while node.event() or node.take(self.rng, hurry=True):
            pass
        if isinstance(node, ProducerNode):
            for _ in range(20 if turn > 20 or self.store.shift is None else 0):
                node.work(self.rng)
        node.acked = node.executed
        if turn % 3 == 1:
            self.silence(node)
        self.transmit(node)
        self.report(node.turn())

    def done(self) -> bool:
        if self.store.shift is not None or not all(node.ended for node in self.producers):
            return False
        for node in self.nodes.values():
            if not node.gone and (node.waiting or node.machine.record.epoch != self.store.epoch):
                return False
            for way, frames in node.outs.items():
                consumer = self.nodes[way[2]]
                if not node.gone and not consumer.gone and consumer.taken.get(way, 0) < len(frames):
                    return False
        return True

    def describe(self) -> str:
        shift = self.store.shift
        lines = [
            f"seed {self.seed}: {self.store.phase} {shift and (shift.id, shift.giver, shift.taker, shift.parties)}"
        ]
        for node in self.nodes.values():
            if not node.gone:
                machine = node.machine
                lines.append(
                    f"{node.name}: executed {node.executed}, waiting {node.waiting}, {machine.progress.settled}"
                )
                for way, frames in node.outs.items():
                    got = len(self.nodes[way[2]].got.get(way, ()))
                    lines.append(f"  {way}: made {len(frames)}, sent {node.sent.get(way, 0)}, got {got}")
        return "\n".join(lines)

    def check(self) -> None:
        """Every record has its effect once, in order; every window; one executor per key; nothing is left over."""
        record = self.store
        expected: dict[int, list[Record]] = {}
        windows: Counter[tuple[int, int]] = Counter()
        for producer in self.producers:
            machine = producer.machine
            if machine.held or machine.shift is not None or machine.bytes:
                raise Violation(f"{producer.name} still holds {machine.held}")
            if (machine.version, machine.table) != (record.version, record.table):
                raise Violation(f"{producer.name} routes by version {machine.version}, not {record.version}")
            if producer.peak > self.buffer + 2 + self.edges * 16:
                raise Violation(f"{producer.name} held {producer.peak}")
            for one in producer.records:
                expected.setdefault(one.key, []).append(one)
                windows[one.key, one.time // WINDOW * WINDOW] += 1
        for key, records in expected.items():
            self._check_key(key, records, sorted(self.consumer.counts.get(key, ())))
        found = Counter(self.consumer.windows)
        found.update((one.key, one.time // WINDOW * WINDOW) for one in self.consumer.late)
        if found != windows or any(not one.late for one in self.consumer.late):
            raise Violation(f"windows differ: {self.consumer.windows}, {self.consumer.late} instead of {windows}")
        for node in self.nodes.values():
            if isinstance(node, MemberNode) and not node.gone:
                self._check_member(node, expected)

    def _check_key(self, key: int, records: list[Record], counts: list[tuple[int, Record]]) -> None:
        if [count for count, _ in counts] != list(range(1, len(records) + 1)):
            raise Violation(f"key {key} was counted {[count for count, _ in counts]} instead of to {len(records)}")
        last: dict[tuple[int, int], int] = {}
        for _, one in counts:
            if last.get((one.producer, one.edge), -1) >= one.number:
                raise Violation(f"{one} came after number {last[one.producer, one.edge]}")
            last[one.producer, one.edge] = one.number
        if {one for _, one in counts} != set(records):
            raise Violation(f"key {key} has the effect of other records")

    def _check_member(self, node: MemberNode, expected: dict[int, list[Record]]) -> None:
        index = int(node.name[1:])
        own = {key for key in expected if self.store.table[group_of(key)] == index}
        if set(node.live["keys"]) != own:
            raise Violation(f"{node.name} has the keys {sorted(node.live['keys'])}; its groups have {sorted(own)}")
        for key in own:
            if len(node.live["keys"][key]) != len(expected[key]):
                raise Violation(f"{node.name} has {len(node.live['keys'][key])} records of key {key}")
        if node.frozen is not None or node.staged is not None:
            raise Violation(f"{node.name} keeps state aside")


def _records(rng: random.Random, producer: int, edges: int, keys: int) -> list[Record]:
    records, time = [], 0
    lateness = rng.choice((0.0, 0.2, 0.5))
    for number in range(rng.choice((10, 25, 40))):
        time += rng.choice((0, 1, 4))
        edge = rng.randrange(edges)
        late = rng.random() < lateness
        own = max(0, time - (rng.choice((8, 20)) if late else rng.choice((0, 0, 5))))
        records.append(Record(producer, number, edge, rng.randrange(keys), own, late))
    return records


def simulate(seed: int, straggling: bool = False) -> Simulation:
    """Run a seed to its end; with `straggling` one producer is slow for most members, and nothing else goes wrong."""
    return Simulation(seed, straggling).run()
