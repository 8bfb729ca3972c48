"""A cluster of lanes behind a network that loses, delays and repeats, in virtual time, for `Sender` to push into.

The lanes are real `PushReader`s, so what a lane takes for a repeat is what it is on a cluster.
"""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field

from penstock.client.conversation import Body
from penstock.client.errors import Busy, ClientError, Rejected, Unreachable
from penstock.client.routes import Addresses, LaneAddress, Routes
from penstock.client.sending import WINDOW, Identity, Limits, Send, Sender
from penstock.connectors import push
from penstock.flow.connector import ConnectorContext

OWN = "http://127.0.0.1:1"
TIMEOUT = 15.0


@dataclass
class Trouble:
    """What goes wrong, as probabilities; times in seconds."""

    lost: float = 0.0
    """A request that never arrives: the connection breaks."""
    unanswered: float = 0.0
    """A request that is carried out and whose answer is lost."""
    hung: float = 0.0
    """The same, and the client notices only when its time is up."""
    repeated: float = 0.0
    """A request that arrives once more, up to a minute later."""
    unready: float = 0.0
    """503, nothing taken."""
    move: float = 0.0
    """Per second and lane: it goes to another node."""
    down: float = 0.0
    """Per second and node: it is gone for some seconds."""
    delay: float = 0.01
    room: int = 40_000
    """Bytes of a lane's queue."""
    drain: float = 2e5
    """Records that a lane reads per second."""
    unseen: bool = False
    """Nobody but the client's own node can be reached from where it is."""


@dataclass
class Node:
    url: str
    down_until: float = 0.0


@dataclass
class SimLane:
    reader: object
    node: int
    taken: list = field(default_factory=list)
    drained_at: float = 0.0


class Simulation:
    """One push from beginning to end."""

    def __init__(self, seed, records, trouble, *, lanes=3, nodes=3, ordered=False, named=False, **limits):
        self.random = random.Random(seed)
        self.trouble = trouble
        self.now = 100.0
        self.nodes = [Node(OWN if i == 0 else f"http://127.0.0.1:{i + 1}") for i in range(nodes)]
        source = push(max_bytes=trouble.room)
        ctx = ConnectorContext("f", "s")
        self.lanes = [SimLane(source.open(name, None, ctx), i % nodes) for i, name in enumerate(source.shares(lanes))]
        self.revision = 1
        self.events = []
        self.tie = itertools.count()
        self.routes = Routes(OWN)
        self.routes.learn(self.addresses(), self.now)
        identity = Identity("me", {None: 5}, named=True) if named else Identity("0123456789abcdef")
        limits = Limits(**{"window": WINDOW, "deadline": 1000.0, **limits})
        self.sender = Sender(
            identity, self.routes, limits, ordered=ordered,
            jitter=lambda attempt: min(3.0, 0.1 * 2**attempt) * self.random.uniform(0.5, 1),
        )  # fmt: skip
        self.limits = limits
        self.input = [list(part) for part in records]
        self.biggest = max((sum(map(len, part)) for part in self.input), default=0)
        self.sends = 0
        self.refuse = lambda part: False
        for i in range(lanes):
            self.at(self.random.expovariate(trouble.move) if trouble.move else 1e9, self.move, i)
        for node in self.nodes:
            self.at(self.random.expovariate(trouble.down) if trouble.down else 1e9, self.fall, node)

    def at(self, after, do, *arguments):
        heapq.heappush(self.events, (self.now + after, next(self.tie), do, arguments))

    # ---- the cluster ----

    def up(self, node):
        return self.now >= node.down_until

    def addresses(self):
        nodes = {str(i): node.url for i, node in enumerate(self.nodes) if self.up(node)}
        lanes = tuple(
            LaneAddress(number, f"0.{number}", str(lane.node), nodes.get(str(lane.node), ""))
            for number, lane in enumerate(self.lanes)
        )
        return Addresses(self.revision, lanes, "sim", nodes)

    def move(self, number):
        self.lanes[number].node = self.random.randrange(len(self.nodes))
        self.revision += 1
        self.at(self.random.expovariate(self.trouble.move), self.move, number)

    def fall(self, node):
        node.down_until = self.now + self.random.uniform(1, 6)
        self.at(self.random.expovariate(self.trouble.down), self.fall, node)

    def arrive(self, send, part):
        """What a node answers. Every node passes on to the lane, wherever it is."""
        number = 0 if send.lane is None else send.lane
        lane = self.lanes[number]
        if not self.up(self.nodes[lane.node]) or self.random.random() < self.trouble.unready:
            return ClientError("it is being restarted", status=503)
        if self.refuse(part):
            return Rejected("not JSON", status=422, problem={"line": 1})
        elapsed = self.now - lane.drained_at
        lane.taken += lane.reader.read(int(elapsed * self.trouble.drain))
        lane.drained_at = self.now
        if not lane.reader.push(part, send.client, send.seq):
            return Busy("no room", status=429)
        return len(part)

    def drained(self):
        for lane in self.lanes:
            while records := lane.reader.read(10_000):
                lane.taken += records
        return [record for lane in self.lanes for record in lane.taken]

    # ---- the network ----

    def transmit(self, send):
        part = self.input_of[id(send.body)][1]
        trouble, chance = self.trouble, self.random.random
        there = self.random.expovariate(1 / trouble.delay)
        if chance() < trouble.repeated:
            self.at(self.random.uniform(0, 60), lambda: self.arrive(send, part))
        node = self.node_at(send.url)
        if node is None or not self.up(node) or chance() < trouble.lost:
            self.at(there, self.lose, send)
            return
        hung, unanswered = chance() < trouble.hung, chance() < trouble.unanswered
        self.at(there, self.deliver, send, part, hung, unanswered)

    def node_at(self, url):
        if self.trouble.unseen and url:
            return None
        return next((node for node in self.nodes if node.url == (url or OWN)), None)

    def deliver(self, send, part, hung, unanswered):
        answer = self.arrive(send, part)
        back = self.random.expovariate(1 / self.trouble.delay)
        if hung:
            self.at(TIMEOUT, self.lose, send)
        elif unanswered:
            self.at(back, self.lose, send)
        else:
            self.at(back, self.answered, send, answer)

    def lose(self, send):
        self.sender.broken(send, Unreachable("reset"), self.now)

    def answered(self, send, answer):
        if isinstance(answer, int):
            self.sender.accepted(send, answer, self.now)
        elif isinstance(answer, Rejected):
            self.sender.refused(send, answer, self.now)
        else:
            self.sender.later(send, 0.1 if answer.status == 429 else 1.0, answer, self.now)

    def tell(self, url):
        node = self.node_at(url)
        if node is not None and self.up(node):
            self.sender.learned(url, self.addresses(), self.now)
        else:
            self.sender.untold(url, self.now, answered=False)

    # ---- the run ----

    def run(self, until=float("inf")):
        """The result, once the push is done."""
        self.input_of = {}
        sender = self.sender
        parts = iter(self.input)
        steps = 0
        while True:
            steps += 1
            assert steps < 50_000, "it goes round and round"
            for send in sender.send(self.now):
                assert isinstance(send, Send)
                self.sends += 1
                self.transmit(send)
            self.check()
            url = sender.question(self.now)
            if url is not None:
                self.at(self.random.expovariate(1 / self.trouble.delay), self.tell, url)
            if sender.done(self.now) or self.now > until:
                return sender.result()
            if sender.wants:
                part = next(parts, None)
                if part is None:
                    sender.end()
                else:
                    body = Body(b"x" * sum(map(len, part)), len(part))
                    self.input_of[id(body)] = (body, part)
                    sender.offer(body)
                continue
            self.advance(sender.wake_at(self.now))

    def advance(self, wake):
        next_event = self.events[0][0]
        if wake is not None and wake <= next_event:
            assert wake > self.now
            self.now = wake
            return
        self.now, _, do, arguments = heapq.heappop(self.events)
        do(*arguments)

    def check(self):
        """What holds at every moment."""
        sender = self.sender
        for lane in sender._lanes.values():
            if lane.pieces:
                assert max(lane.pieces) - min(lane.pieces) < 64
            assert len(lane.under_way) <= self.limits.depth
        held = sum(lane.bytes for lane in sender._lanes.values())
        assert held <= self.limits.window + self.biggest
