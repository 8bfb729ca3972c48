"""A whole flow in one thread, in any order that a seed asks for.

The real protocol machines (frames, senders, receivers, aligners, coordinator, routers) run between simulated executors
and links. Each step does one thing that could happen next: a frame or an acknowledgement arrives, an executor
processes a frame or reads its source, a checkpoint begins or is given up, everything crashes and is restored. Links
delay as they please (so channels overtake each other); on lossy links, which need `retain`, they also lose, repeat and
swap frames.

The executors follow the worker's rules: a data frame is processed only while every output channel has credit; other
frames need none; frames behind a barrier wait until every input has brought it.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field, replace

import msgspec

from penstock.exchange.barrier import Aligned, Aligner
from penstock.exchange.channel import Receiver, Sender, Verdict
from penstock.exchange.checkpoint import CheckpointCoordinator, Complete
from penstock.exchange.frame import Header, Kind, decode, encode
from penstock.exchange.keys import Router
from penstock.flow.graph import EdgeShape, StageShape, Topology
from penstock.placement.plan import Channel, channels

SHAPES: dict[str, tuple[tuple[int, int], ...]] = {
    "chain": ((0, 1), (1, 2), (2, 3)),
    "diamond": ((0, 1), (0, 2), (1, 3), (2, 3)),
    "lopsided diamond": ((0, 1), (1, 2), (0, 3), (2, 3)),
    "join": ((0, 2), (1, 2), (2, 3)),
    "self join": ((0, 1), (0, 1), (1, 2)),
    "two joins": ((0, 3), (1, 3), (1, 4), (2, 4), (3, 5), (4, 5)),
    "fan out": ((0, 1), (0, 2), (1, 3)),
}
"""Edges (producer stage, consumer stage); stages without an incoming edge are sources."""

KEYS = 11
Record = tuple[int, int]
Name = tuple[int, int]


class Violation(AssertionError):
    """An invariant does not hold."""


def shape(edges: tuple[tuple[int, int], ...], pipes: frozenset[int] = frozenset()) -> Topology:
    """A topology of plain stages; `pipes` are the edges that are no shuffle."""
    size = 1 + max(max(edge) for edge in edges)
    targets = {target for _, target in edges}
    return Topology(
        flow="simulated",
        bounded=True,
        stages=tuple(StageShape(i, (f"s{i}",), ("step",), i not in targets, i in targets) for i in range(size)),
        edges=tuple(
            EdgeShape(i, a, f"s{a}", 0, b, f"s{b}", 0, "pipe" if i in pipes else "shuffle")
            for i, (a, b) in enumerate(edges)
        ),
    )


@dataclass(frozen=True)
class Setup:
    """Everything that a seed decides."""

    seed: int
    topology: Topology
    counts: dict[int, int]
    inputs: dict[Name, tuple[Record, ...]]
    credit: int
    batch: int
    retain: bool
    checkpoints: float
    """Chance per step to begin one."""
    aborts: int
    """At most so many are given up by chance; a barrier needs no credit, so they must be rare compared with records."""
    crashes: int
    speeds: dict[Name, float]
    mutant: str = ""
    """A deliberate fault, to show that the simulator finds it."""


def setup(seed: int, *, shape_name: str | None = None, mutant: str = "") -> Setup:
    """The run that belongs to a seed."""
    rng = random.Random(seed)
    edges = SHAPES[shape_name or rng.choice(list(SHAPES))]
    topology = shape(edges, frozenset(i for i in range(len(edges)) if rng.random() < 0.2))
    uniform = rng.choice((0, 0, 1, 2, 3))
    counts = {stage.id: uniform or rng.choice((1, 1, 2, 3)) for stage in topology.stages}
    names = [(stage, index) for stage in counts for index in range(counts[stage])]
    inputs = {
        name: tuple((rng.randrange(KEYS), rng.randrange(100)) for _ in range(rng.choice((0, 5, 20, 40))))
        for name in names
        if topology.stages[name[0]].has_source
    }
    return Setup(
        seed=seed,
        topology=topology,
        counts=counts,
        inputs=inputs,
        credit=rng.choice((1, 150, 400, 4000)),
        batch=rng.choice((1, 3, 8)),
        retain=rng.random() < 0.3,
        checkpoints=rng.choice((0.0, 0.01, 0.05)),
        aborts=rng.choice((0, 0, 3)),
        crashes=rng.choice((0, 0, 1, 2)),
        speeds={name: rng.choice((1.0, 1.0, 0.3, 0.15)) for name in names},
        mutant=mutant,
    )


def forward(stage: int, record: Record) -> list[Record]:
    """What a stage emits for a record: none, one or two, whatever the order that records come in."""
    key, value = record
    out = [] if (key + value + stage) % 7 == 0 else [((key * 3 + stage) % KEYS, value + 1)]
    return out * 2 if value % 5 == 0 else out


def oracle(setup: Setup) -> dict[int, Counter[Record]]:
    """The batch result: which records each stage has seen."""
    seen: dict[int, Counter[Record]] = {stage.id: Counter() for stage in setup.topology.stages}
    for (stage, _), records in setup.inputs.items():
        seen[stage].update(records)
    for stage in seen:  # ids grow along the edges
        emitted: Counter[Record] = Counter()
        for record, number in seen[stage].items():
            for out in forward(stage, record):
                emitted[out] += number
        for edge in setup.topology.edges:
            if edge.source_stage == stage:
                seen[edge.target_stage].update(emitted)
    return seen


@dataclass
class Link:
    """A channel, its two ends, and what is under way in both directions."""

    channel: Channel
    sender: Sender
    receiver: Receiver
    frames: deque[bytes] = field(default_factory=deque)
    answers: deque[Header] = field(default_factory=deque)
    gathered: list[Record] = field(default_factory=list)
    waiting: int = 0
    """Bytes accepted by the consumer and not yet processed."""
    processed: int = -1

    def send(self, kind: Kind, records: list[Record] | None = None, checkpoint: int = 0) -> int:
        sender = self.sender
        term, counter = sender.epoch
        header = Header(
            kind,
            self.channel.id,
            term,
            counter,
            sender.next_seq(),
            checkpoint=checkpoint,
            records=len(records or ()),
        )
        frame = encode(header, msgspec.msgpack.encode(records) if records else b"")
        if sender.sent(len(frame), len(records or ()), frame if sender.retain else None) != header.seq:
            raise Violation("a sender numbered a frame differently from what it had said")
        self.frames.append(frame)
        return len(frame)

    def answer(self, kind: Kind, seq: int) -> None:
        term, counter = self.receiver.epoch
        self.answers.append(Header(kind, self.channel.id, term, counter, seq))


class Executor:
    """One executor: counts the records that it sees, and forwards."""

    def __init__(self, run: Simulation, name: Name, inbound: list[Link], outbound: list[Link]) -> None:
        self.run, self.name = run, name
        self.inbound = {link.channel.id: link for link in inbound}
        self.outbound = outbound
        edges = dict.fromkeys(link.channel.edge for link in outbound)
        self.edges = [[link for link in outbound if link.channel.edge == edge] for edge in edges]
        self.routers = [Router(len(links)) for links in self.edges]
        self.queue: deque[tuple[Link, Header, list[Record], int]] = deque()
        self.held = {number: deque(self.queue) for number in self.inbound}
        self.aligner = Aligner(self.inbound)
        self.seen: Counter[Record] = Counter()
        self.offset = 0
        self.input = run.setup.inputs.get(name)
        self.finished = False
        self.requested = 0

    # ---- work -------------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Do the next thing; whether there was one."""
        ready = all(link.sender.ready for link in self.outbound) or self.run.setup.mutant == "credit is ignored"
        if self.queue and (ready or self.queue[0][1].kind is not Kind.DATA):
            self.take(*self.queue.popleft())
            return True
        if self.input is not None and not self.finished:
            if self.requested:
                self.snapshot(self.requested)
                self.requested = 0
                return True
            if ready:
                records = self.input[self.offset : self.offset + self.run.rng.randint(1, self.run.setup.batch)]
                self.offset += len(records)
                self.process(list(records))
                if self.offset == len(self.input):
                    self.finish()
                return True
        return not self.queue and self.quiet()

    def take(self, link: Link, header: Header, records: list[Record], size: int) -> None:
        """Process one frame, or put it aside when its channel waits for a barrier."""
        number = link.channel.id
        if self.aligner.blocked(number) and self.run.setup.mutant != "no alignment":
            self.held[number].append((link, header, records, size))
            return
        if header.seq != link.processed + 1:
            raise Violation(f"channel {number}: frame {header.seq} was processed after {link.processed}")
        link.processed = header.seq
        if header.kind is Kind.DATA:
            self.process(records)
        elif header.kind is Kind.BARRIER:
            answer = self.aligner.on_barrier(number, header.checkpoint)
            if isinstance(answer, Aligned):
                self.snapshot(answer.checkpoint)
            self.unhold()
        elif header.kind is Kind.END:
            ended = None if self.run.setup.mutant == "end holds barriers up" else self.aligner.on_end(number)
            if ended is not None:
                self.snapshot(ended.checkpoint)
            self.unhold()
            if self.aligner.finished:
                self.finish()
        link.waiting -= size
        ack = link.receiver.consumed(header.seq, size)
        if ack is not None:
            link.answer(Kind.ACK, ack)

    def unhold(self) -> None:
        free = [number for number in self.held if self.held[number] and not self.aligner.blocked(number)]
        for number in free:
            self.queue.extendleft(reversed(self.held[number]))
            self.held[number].clear()

    def process(self, records: list[Record]) -> None:
        self.run.timeouts = 0
        self.seen.update(records)
        emitted = [out for record in records for out in forward(self.name[0], record)]
        for router, links in zip(self.routers, self.edges, strict=True):
            for target, _, part, _ in router.split([key for key, _ in emitted], emitted, None):
                link = links[target]
                link.gathered += part or ()
                while len(link.gathered) >= self.run.setup.batch:
                    self.flush(link)

    def flush(self, link: Link) -> None:
        if link.gathered:
            batch, link.gathered = link.gathered[: self.run.setup.batch], link.gathered[self.run.setup.batch :]
            self.run.largest = max(self.run.largest, link.send(Kind.DATA, batch))

    def signal(self, kind: Kind, checkpoint: int = 0) -> None:
        for link in self.outbound:
            while link.gathered:
                self.flush(link)
            self.run.signals += link.send(kind, checkpoint=checkpoint)

    def quiet(self) -> bool:
        """Nothing to process: send what is gathered, confirm what is consumed."""
        did = False
        for link in self.outbound:
            if link.gathered and link.sender.ready:
                self.flush(link)
                did = True
        for link in self.inbound.values():
            ack = None if self.run.setup.mutant == "acks are kept back" else link.receiver.flush_ack()
            if ack is not None:
                link.answer(Kind.ACK, ack)
                did = True
        return did

    def finish(self) -> None:
        self.finished = True
        self.signal(Kind.END)
        if self.run.coordinator.in_flight is not None:
            self.report(self.run.coordinator.in_flight)

    # ---- state ------------------------------------------------------------------------------------------------------

    def snapshot(self, checkpoint: int) -> None:
        self.signal(Kind.BARRIER, checkpoint)
        self.report(checkpoint)

    def report(self, checkpoint: int) -> None:
        state = self.seen.copy(), self.offset, self.finished
        self.run.completed(self.run.coordinator.on_part(self.name, checkpoint, state))

    # ---- transport --------------------------------------------------------------------------------------------------

    def receive(self, link: Link, frame: bytes) -> None:
        """A frame arrives."""
        header, payload = decode(frame)
        verdict = link.receiver.receive(header.epoch, header.seq, len(frame))
        if verdict is Verdict.ACCEPT:
            records = msgspec.msgpack.decode(payload, type=list[Record]) if payload else []
            link.waiting += len(frame)
            item = (link, header, records, len(frame))
            if self.run.setup.mutant == "newer before held" and self.aligner.blocked(link.channel.id):
                self.held[link.channel.id].append(item)
            else:
                self.queue.append(item)
        elif verdict is Verdict.GAP:
            asked = link.receiver.nack()
            if asked is not None:
                link.answer(Kind.NACK, asked)


class Simulation:
    """One run of a setup."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.rng = random.Random(setup.seed)
        self.epoch = (1, 0)
        self.largest = 0
        self.signals = 0
        self.timeouts = 0
        """Checkpoints in a row that nothing but their timeout could end."""
        self.stats: Counter[str] = Counter()
        self.last: Complete[Name] | None = None
        self.links: list[Link] = []
        self.executors: dict[Name, Executor] = {}
        self.coordinator: CheckpointCoordinator[Name] = CheckpointCoordinator([])
        self.build()

    def build(self) -> None:
        """All executors afresh, from the last complete checkpoint if there is one."""
        s = self.setup
        credit = s.credit
        self.epoch = (1, self.epoch[1] + 1)
        receiver_credit = credit * 50 if s.mutant == "acks are kept back" else credit
        self.links = [
            Link(channel, Sender(self.epoch, credit, s.retain), Receiver(self.epoch, receiver_credit, s.retain))
            for channel in channels(s.topology, s.counts)
        ]
        names = [(stage, index) for stage in s.counts for index in range(s.counts[stage])]
        self.executors = {
            name: Executor(
                self,
                name,
                [li for li in self.links if (li.channel.consumer_stage, li.channel.consumer_index) == name],
                [li for li in self.links if (li.channel.producer_stage, li.channel.producer_index) == name],
            )
            for name in names
        }
        parts = {} if self.last is None else self.last.parts
        self.stats["restored"] += self.last is not None
        ended = [name for name, part in parts.items() if part.info[2]]
        self.coordinator = CheckpointCoordinator(names, after=self.coordinator.number)
        for name, part in parts.items():
            executor = self.executors[name]
            executor.seen, executor.offset = part.info[0].copy(), part.info[1]
        for name in ended:
            self.executors[name].finished = True
            self.executors[name].signal(Kind.END)

    # ---- steps ------------------------------------------------------------------------------------------------------

    def run(self) -> Simulation:
        """To the end of the input. Raises `Violation`."""
        names = list(self.executors)
        idle = 0
        for step in range(60_000):
            did = self.move(names)
            if step % 32 == 0:
                self.check_memory()
            if did:
                idle = 0
                continue
            idle += 1
            if idle > 30:
                idle = 0
                if self.done():
                    self.stats["steps"] += step
                    self.check_result()
                    return self
                if not self.move_any():
                    raise Violation("dead-lock: " + self.describe())
        raise Violation("no end in sight: " + self.describe())

    def move(self, names: list[Name]) -> bool:
        """Try one thing at random."""
        rng, s = self.rng, self.setup
        dice = rng.random()
        if dice < s.checkpoints:
            return self.begin()
        if dice > 0.98 and self.stats["aborted"] < s.aborts:
            self.stats["aborted"] += self.coordinator.abort("chance") is not None
            return True
        if 0.965 < dice < 0.968 and self.stats["crashes"] < s.crashes and (self.last is not None or rng.random() < 0.2):
            self.stats["crashes"] += 1
            self.build()
            return True
        if dice < 0.5:
            name = names[int(rng.random() * len(names))]
            return rng.random() < s.speeds[name] and self.executors[name].step()
        return self.deliver(self.links[int(rng.random() * len(self.links))])

    def move_any(self) -> bool:
        """Look for anything that can still happen."""
        did = any([self.deliver(link) for link in self.links] + [e.step() for e in self.executors.values()])
        if not did and self.setup.retain and self.setup.mutant != "nothing is sent again":
            for link in self.links:  # what a timer does: the channel has been silent
                again = link.sender.resend()
                if again and not link.waiting:
                    link.frames.extend(again)
                    self.stats["resent"] += len(again)
                    did = True
        if not did and self.coordinator.in_flight is not None:  # its timeout
            self.coordinator.abort("timeout")
            self.timeouts += 1
            did = self.begin() and self.timeouts < 20
        return did

    def begin(self) -> bool:
        number = self.coordinator.begin(0.0)
        if number is None:
            return False
        for executor in self.executors.values():
            if executor.finished:
                executor.report(number)
            elif executor.input is not None:
                executor.requested = number
        return True

    def deliver(self, link: Link) -> bool:
        """One frame, and one answer, arrive, or meet with an accident."""
        lossy = self.setup.retain and self.rng.random() < 0.15
        if link.frames:
            frame = link.frames.popleft()
            fate = self.rng.choice(("lose", "repeat", "swap")) if lossy else ""
            if fate == "repeat":
                link.frames.append(frame)
            elif fate == "swap" and link.frames:
                link.frames.insert(1, frame)
                frame = link.frames.popleft()
            if fate != "lose":
                self.executors[link.channel.consumer_stage, link.channel.consumer_index].receive(link, frame)
        elif not link.answers:
            return False
        if link.answers:
            header = link.answers.popleft()
            if lossy and self.rng.random() < 0.5:
                return True
            if header.kind is Kind.ACK:
                link.sender.on_ack(header.epoch, header.seq)
            else:
                link.frames.extend(link.sender.on_nack(header.epoch, header.seq))
        return True

    def completed(self, complete: Complete[Name] | None) -> None:
        if complete is not None:
            if self.last is not None and complete.number <= self.last.number:
                raise Violation("checkpoint numbers do not grow")
            if set(complete.parts) != set(self.executors):
                raise Violation("a complete checkpoint lacks executors")
            self.last = complete
            self.timeouts = 0
            self.stats["complete"] += 1

    # ---- invariants -------------------------------------------------------------------------------------------------

    def check_memory(self) -> None:
        """In flight: at most the credit, what one input frame made of it (twice its records, at most three frames of
        each channel), and signals, which need no credit."""
        for link in self.links:
            bound = self.setup.credit + 3 * self.largest + self.signals
            if link.sender.outstanding > bound or link.waiting > bound:
                raise Violation(f"channel {link.channel.id}: {link.sender.outstanding} bytes in flight, bound {bound}")

    def done(self) -> bool:
        return all(e.finished and not e.queue for e in self.executors.values()) and not any(
            link.frames or link.gathered or link.answers or link.sender.outstanding for link in self.links
        )

    def check_result(self) -> None:
        expected = oracle(self.setup)
        for stage, seen in expected.items():
            found: Counter[Record] = sum((e.seen for n, e in self.executors.items() if n[0] == stage), Counter())
            if found != seen:
                raise Violation(f"stage {stage}: missing {seen - found}, too many {found - seen}")
        for link in self.links:
            if link.receiver.next_seq != link.sender.next_seq() or link.processed + 1 != link.receiver.next_seq:
                raise Violation(f"channel {link.channel.id} ended with frames missing")
            if link.receiver.lost_frames or link.sender.bad_acks:
                raise Violation(f"channel {link.channel.id} counted a loss or a bad acknowledgement")

    def describe(self) -> str:
        stuck = [
            f"{name}: finished={e.finished} queue={len(e.queue)} held={ {i: len(h) for i, h in e.held.items() if h} }"
            f" aligning={e.aligner.current}"
            for name, e in self.executors.items()
        ]
        return f"{replace(self.setup, inputs={})}\n" + "\n".join(stuck)


def simulate(seed: int, *, shape_name: str | None = None, mutant: str = "") -> Simulation:
    """Run the setup of a seed to its end."""
    return Simulation(setup(seed, shape_name=shape_name, mutant=mutant)).run()
