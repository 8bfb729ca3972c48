"""Pushing a stream: which piece goes where and when, what is sent again, what is acknowledged. No I/O, no clock.

A source has **lanes**, one for each executor that reads it. A piece gets a lane and a number in it when it is first
sent, and keeps both for ever: the lane knows by them that it has taken a piece before. So whatever went wrong, the
answer is to send it again, and it is taken once.

A lane remembers the last 64 numbers of a client (`penstock.connectors.pushed.SeenPushes`) and takes older ones for
repeats. So a piece that is `REACH` numbers behind the newest one holds up its lane until it is acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from zlib import crc32

import msgspec

from penstock.client.conversation import Body, backoff
from penstock.client.errors import ClientError, Unreachable
from penstock.client.routes import Addresses, Routes

REACH = 32
"""Numbers of one lane that may be without acknowledgement; less than a lane's window."""
DEPTH = 4
"""Pieces that are under way to a lane at once."""
WINDOW = 16 * 2**20
"""Bytes that may be without acknowledgement."""
SLOW = 2.0
"""Seconds without an answer after which a piece's node is asked whether it is alive, and where the lane is."""
ASK_AGAIN = 1.0
"""Seconds between two questions for addresses while there is reason to ask."""
GRACE = 2.0
"""Seconds that pieces under way have to be acknowledged, once no more are sent."""


class PushResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a push, or has come of it so far."""

    accepted: int = 0
    """Records that are acknowledged."""
    lanes: dict[int, int] = {}
    """Lane -> how many of them it took; empty when the cluster chose."""
    requests: int = 0
    """Pieces that are acknowledged."""
    resent: int = 0
    """Times that a piece was sent again."""
    pending: int = 0
    """Records that were read from the input and are not acknowledged: they may have been taken or not."""
    through: int = 0
    """So many records from the beginning of the input are acknowledged without a gap."""


@dataclass(frozen=True)
class Limits:
    """How much may be without acknowledgement, and for how long (seconds) a lane may acknowledge nothing."""

    window: int = WINDOW
    depth: int = DEPTH
    deadline: float = 30.0


@dataclass
class Identity:
    """A sender with numbers of its own on every lane. Two pushes at the same time need two: one could run ahead of what
    the other one still has to repeat."""

    id: str
    numbers: dict[int | None, int] = field(default_factory=dict)
    """Lane -> its next number. `None`: the cluster chooses the lane."""
    named: bool = False
    """The caller has given it: the cluster chooses its lane by it."""
    home: int | None = None
    """The lane that is used first, and alone when order matters."""

    def next(self, lane: int | None) -> int:
        """The next number on a lane, from 1 unless the caller said otherwise."""
        number = self.numbers.get(lane, 1)
        self.numbers[lane] = number + 1
        return number

    def on(self, lane: int | None) -> str:
        """The client's name on a lane. It contains the lane, because lanes share what they remember once the source is
        read by another number of executors."""
        return self.id if lane is None else f"{self.id}-{lane}"


@dataclass(eq=False)
class _Piece:
    place: int
    body: Body
    before: int
    """Records before it in the input."""
    since: float = 0.0
    """When it was sent first."""
    attempt: int = 0
    sent_at: float = 0.0
    look_at: float = 0.0
    """When its node is asked where the answer is."""
    url: str = ""
    node: str = ""
    error: ClientError | None = None
    failures: int = 0


@dataclass(frozen=True)
class Send:
    """Send this piece now."""

    key: tuple[int | None, int, int]
    """Lane, number, attempt: to be given back with what comes of it."""
    url: str
    client: str
    body: Body

    @property
    def lane(self) -> int | None:
        """`None`: the cluster chooses."""
        return self.key[0]

    @property
    def seq(self) -> int:
        """The number on the lane."""
        return self.key[1]


@dataclass(eq=False)
class _Lane:
    number: int | None
    depth: int
    pieces: dict[int, _Piece] = field(default_factory=dict)
    """Number -> what is not acknowledged."""
    under_way: set[int] = field(default_factory=set)
    newest: int = 0
    resume_at: float = float("-inf")
    """Send nothing before."""
    failures: int = 0
    acknowledged_at: float = float("-inf")
    given: int = 0
    """Records that were assigned to it."""
    accepted: int = 0

    @property
    def bytes(self) -> int:
        """Not acknowledged."""
        return sum(len(piece.body.content) for piece in self.pieces.values())

    def open(self, now: float) -> bool:
        """Whether a new piece can be sent."""
        return (
            now >= self.resume_at
            and len(self.pieces) < self.depth
            and (not self.pieces or self.newest + 1 - min(self.pieces) < REACH)
        )

    def again(self) -> list[int]:
        """The numbers that have to be sent again, the oldest first."""
        return sorted(self.pieces.keys() - self.under_way)


class Sender:
    """One push. Tell it what happens (`offer`, `end`, `accepted`, `later`, `broken`, `refused`, `elsewhere`, `learned`,
    `untold`), do what `send` and `question` say, until it is `done`. Times are seconds of any monotonic clock."""

    def __init__(
        self,
        identity: Identity,
        routes: Routes,
        limits: Limits,
        *,
        ordered: bool = False,
        jitter: Callable[[int], float] = backoff,
    ) -> None:
        self._identity, self._routes, self._limits, self._jitter = identity, routes, limits, jitter
        self._ordered = ordered
        self._lanes: dict[int | None, _Lane] = {}
        self._waiting: _Piece | None = None
        self._ended = False
        self._bytes = 0
        self._read = 0
        """Records."""
        self._places = 0
        self._gaps: dict[int, int] = {}
        """Place -> records acknowledged beyond the first gap."""
        self._first_gap = 0
        self._accepted = self._requests = self._resent = self._through = 0
        self._ask_at = float("inf")
        self._ask_url = ""
        self._asking = False
        self._stopped_at = float("inf")
        self.error: ClientError | None = None
        """Why no more is sent."""

    # ---- the input --------------------------------------------------------------------------------------------------

    @property
    def wants(self) -> bool:
        """Whether there is room for another piece."""
        return (
            not self._ended and not self._stopped and self._waiting is None
            and (self._bytes < self._limits.window or not self._bytes)
        )  # fmt: skip

    def offer(self, body: Body) -> None:
        """The next piece of the input."""
        self._waiting = _Piece(self._places, body, self._read)
        self._places += 1
        self._read += body.records
        self._bytes += len(body.content)

    def end(self) -> None:
        """There is no further input."""
        self._ended = True

    def stop(self, now: float) -> None:
        """Send no more; what is under way has a short time left."""
        self._stopped_at = min(self._stopped_at, now)

    @property
    def cluster(self) -> str:
        """The name of the cluster that gave the addresses."""
        return self._routes.cluster

    @property
    def _stopped(self) -> bool:
        return self._stopped_at < float("inf")

    # ---- what to do -------------------------------------------------------------------------------------------------

    def send(self, now: float) -> list[Send]:
        """What is to be sent now."""
        sends: list[Send] = []
        if self._stopped:
            return sends
        for lane in list(self._lanes.values()):
            for seq in lane.again() if now >= lane.resume_at else ():
                if len(lane.under_way) >= lane.depth:
                    break
                if self._overdue(lane, lane.pieces[seq], now):
                    return sends
                self._resent += 1
                sends.append(self._sent(lane, seq, now))
            sends += self._hurried(lane, now)
        chosen = self._choose(now)
        if self._waiting is not None and chosen is not None:
            piece, self._waiting = self._waiting, None
            seq = self._identity.next(chosen.number)
            piece.since = now
            chosen.pieces[seq], chosen.newest = piece, seq
            chosen.given += piece.body.records
            sends.append(self._sent(chosen, seq, now))
        if now >= self._routes.stale_at:
            self._ask(self._routes.any_url(now), now)
        return sends

    def question(self, now: float) -> str | None:
        """The node to be asked for addresses now, if one is."""
        if self._asking or self._stopped or now < self._ask_at:
            return None
        self._asking, self._ask_at = True, float("inf")
        return self._ask_url

    def wake_at(self, now: float) -> float | None:
        """When to look again if nothing happens; `send` has just been asked."""
        if self._stopped:
            return self._stopped_at + GRACE
        times = [] if self._asking else [self._ask_at]
        for lane in self._lanes.values():
            if self._waiting is not None or len(lane.pieces) > len(lane.under_way):
                times.append(lane.resume_at)
            times += [lane.pieces[seq].look_at for seq in lane.under_way]
        return min((time for time in times if now < time < float("inf")), default=None)

    def done(self, now: float) -> bool:
        """Whether nothing is awaited any more."""
        if self._stopped:
            return now >= self._stopped_at + GRACE or not any(lane.under_way for lane in self._lanes.values())
        return self._ended and self._waiting is None and not self._asking and not self._bytes

    def result(self) -> PushResult:
        """What is acknowledged."""
        return PushResult(
            accepted=self._accepted,
            lanes={n: lane.accepted for n, lane in sorted(self._numbered()) if lane.accepted},
            requests=self._requests,
            resent=self._resent,
            pending=self._read - self._taken,
            through=self._through,
        )

    def _numbered(self) -> Iterator[tuple[int, _Lane]]:
        return ((number, lane) for number, lane in self._lanes.items() if number is not None)

    @property
    def _taken(self) -> int:
        return self._through + sum(self._gaps.values())

    # ---- what happens -----------------------------------------------------------------------------------------------

    def accepted(self, send: Send, records: int, now: float) -> None:
        """The piece has been taken, now or before."""
        self._routes.answered(send.url)
        lane = self._lanes[send.lane]
        piece = lane.pieces.pop(send.seq, None)
        if piece is None:
            return
        lane.under_way.discard(send.seq)
        lane.failures, lane.acknowledged_at = 0, now
        lane.depth = min(self._depth, lane.depth + 1)
        lane.accepted += records
        self._accepted += records
        self._requests += 1
        self._bytes -= len(piece.body.content)
        self._gaps[piece.place] = piece.body.records
        while self._first_gap in self._gaps:
            self._through += self._gaps.pop(self._first_gap)
            self._first_gap += 1

    def later(self, send: Send, wait: float | None, error: ClientError, now: float) -> None:
        """The node says that it cannot be taken now; `wait` seconds, if it knows."""
        self._routes.answered(send.url)
        piece = self._back(send, error)
        if piece is None:
            return
        lane = self._lanes[send.lane]
        if error.status == 429:
            lane.depth = max(1, lane.depth // 2)
        else:
            self._ask(send.url, now)
        self._pause(lane, piece, self._jitter(piece.failures) if wait is None else wait, now)

    def broken(self, send: Send, error: ClientError, now: float) -> None:
        """There was no answer: the piece may have been taken or not."""
        self._routes.failed(send.url, now)
        piece = self._back(send, error)
        self._ask(self._routes.any_url(now, (send.url,)), now)
        if piece is not None:
            self._pause(self._lanes[send.lane], piece, self._jitter(piece.failures), now)

    def elsewhere(self, send: Send, error: ClientError, now: float) -> None:
        """The address leads to another cluster: never use it again."""
        if not send.url:
            self.refused(send, error, now)
            return
        self._routes.foreign(send.url)
        self._back(send, error)
        self._ask(self._routes.any_url(now), now)

    def refused(self, send: Send, error: ClientError, now: float) -> None:
        """It cannot be taken as it is."""
        piece = self._back(send, error)
        if piece is not None:
            self._fail(piece, error, now)

    def learned(self, url: str, addresses: Addresses, now: float) -> None:
        """A node has answered with addresses."""
        self._asking = False
        self._routes.answered(url)
        self._routes.learn(addresses, now)

    def untold(self, url: str, now: float, *, answered: bool) -> None:
        """A node has not; `answered`: it said something else, as a node does that is starting."""
        self._asking = False
        if not answered:
            self._routes.failed(url, now)
        if self._bytes:
            self._ask(self._routes.any_url(now, (url,)), now + ASK_AGAIN)

    # ---- inside -----------------------------------------------------------------------------------------------------

    @property
    def _depth(self) -> int:
        return 1 if self._ordered else self._limits.depth

    def _choose(self, now: float) -> _Lane | None:
        """The lane for the next new piece: the one with least to do, at first always the same one."""
        if self._identity.named:
            numbers: list[int | None] = [None]
        else:
            numbers = list(self._routes.lanes)
            if self._identity.home not in numbers:
                self._identity.home = numbers[crc32(self._identity.id.encode()) % len(numbers)]
            first = numbers.index(self._identity.home)
            numbers = numbers[first:] + numbers[:first]
            if self._ordered:
                numbers = list(self._lanes) or numbers[:1]
        for number in numbers:
            if number not in self._lanes:
                self._lanes[number] = _Lane(number, self._depth)
        lanes = [self._lanes[number] for number in numbers if self._lanes[number].open(now)]
        return min(lanes, key=lambda lane: (lane.bytes, lane.given), default=None)

    def _sent(self, lane: _Lane, seq: int, now: float) -> Send:
        piece = lane.pieces[seq]
        piece.attempt += 1
        piece.sent_at, piece.look_at = now, now + SLOW
        piece.url, piece.node = self._routes.lane_url(lane.number, now), self._routes.node(lane.number)
        lane.under_way.add(seq)
        key = (lane.number, seq, piece.attempt)
        return Send(key, piece.url, self._identity.on(lane.number), piece.body)

    def _hurried(self, lane: _Lane, now: float) -> list[Send]:
        """Pieces whose answer is overdue: their nodes are asked, and once the lane has another address they are sent
        there without waiting any longer."""
        sends = []
        for seq in sorted(lane.under_way):
            piece = lane.pieces[seq]
            if now < piece.sent_at + SLOW:
                continue
            url, node = self._routes.lane_url(lane.number, now), self._routes.node(lane.number)
            if (url, node) != (piece.url, piece.node):
                self._resent += 1
                sends.append(self._sent(lane, seq, now))
            elif now >= piece.look_at:
                piece.look_at = now + ASK_AGAIN
                self._ask(piece.url, now)
        return sends

    def _back(self, send: Send, error: ClientError) -> _Piece | None:
        """The piece of an attempt that did not succeed, unless another one did or is under way."""
        lane = self._lanes[send.lane]
        piece = lane.pieces.get(send.seq)
        if piece is None or piece.attempt != send.key[2]:
            return None
        lane.under_way.discard(send.seq)
        piece.error = error
        return piece

    def _pause(self, lane: _Lane, piece: _Piece, seconds: float, now: float) -> None:
        piece.failures += 1
        lane.resume_at = max(lane.resume_at, now + seconds)
        self._overdue(lane, piece, now, lane.resume_at)

    def _overdue(self, lane: _Lane, piece: _Piece, now: float, at: float | None = None) -> bool:
        """Whether the piece would be sent (`at` some time, else now) after its deadline: then the push has failed."""
        if (now if at is None else at) <= max(piece.since, lane.acknowledged_at) + self._limits.deadline:
            return False
        self._fail(piece, piece.error or Unreachable("no answer before the deadline"), now)
        return True

    def _fail(self, piece: _Piece, error: ClientError, now: float) -> None:
        if self.error is None:
            self.error = error
            error.before = piece.before
        self.stop(now)

    def _ask(self, url: str, at: float) -> None:
        if not self._asking and at < self._ask_at:
            self._ask_url, self._ask_at = url, at
