"""The ends of a replicated executor's channels. Frames are numbered from 0 without a hole; both ends keep them until
their effect is safe."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from penstock.exchange.channel import DEFAULT_CREDIT, Verdict
from penstock.exchange.frame import Epoch
from penstock.exchange.replica.messages import Data, Output

NEVER: Epoch = (0, 0)


class InputLine:
    """One input channel: the frames that are held, and how far they were processed."""

    __slots__ = ("_asked", "_frames", "bytes", "epoch", "first", "next_seq", "number", "processed_bytes", "taken")

    def __init__(self, number: int, taken: int = -1) -> None:
        self.number = number
        self.taken = taken
        """The last frame processed."""
        self.next_seq = taken + 1
        """The first one missing: the high-water mark."""
        self.first = taken + 1
        """The oldest one held."""
        self.epoch = NEVER
        """The producer's: older ones are refused."""
        self.bytes = 0
        """Held."""
        self.processed_bytes = 0
        """Of these, processed already."""
        self._frames: dict[int, bytes] = {}
        self._asked = -1

    def take(self, seq: int) -> None:
        """A frame was processed."""
        self.taken = seq
        self.processed_bytes += len(self._frames[seq])

    def __getitem__(self, seq: int) -> bytes:
        return self._frames[seq]

    def receive(self, seq: int, payload: bytes) -> Verdict:
        """Judge a frame, and keep it if it is the next one."""
        if seq < self.next_seq:
            return Verdict.REPEAT
        if seq > self.next_seq:
            return Verdict.GAP
        self._frames[seq] = payload
        self.bytes += len(payload)
        self.next_seq += 1
        return Verdict.ACCEPT

    def ask(self) -> int | None:
        """After a gap: from where to ask again; `None` when that was done already."""
        if self._asked == self.next_seq:
            return None
        self._asked = self.next_seq
        return self.next_seq

    def ask_anew(self) -> None:
        """What was asked may be lost, or went to somebody else."""
        self._asked = -1

    def frames(self, first: int) -> Iterable[tuple[int, bytes]]:
        """What is held from `first` on."""
        for seq in range(max(first, self.first), self.next_seq):
            yield seq, self._frames[seq]

    def forget_through(self, seq: int) -> None:
        """Frames up to this one are not needed any more."""
        while self.first <= seq and self.first < self.next_seq:
            size = len(self._frames.pop(self.first))
            self.bytes -= size
            if self.first <= self.taken:
                self.processed_bytes -= size
            self.first += 1

    def restart(self, taken: int) -> None:
        """A checkpoint stands for everything through `taken`."""
        self.forget_through(taken)
        self.taken = taken
        if self.next_seq <= taken:
            self.first = self.next_seq = taken + 1

    def clear(self) -> None:
        """Nothing is known: a snapshot will say where to begin."""
        self._frames.clear()
        self.first = self.next_seq = 0
        self.taken = self._asked = -1
        self.bytes = self.processed_bytes = 0


class OutputLine:
    """One output channel: what is kept for the consumer, what may leave, what has left."""

    __slots__ = (
        "_kept", "bytes", "consumed", "counted", "credit_bytes", "epoch", "gone", "in_flight", "next_seq", "number",
        "open", "safe", "sent",
    )  # fmt: skip

    def __init__(self, number: int, credit_bytes: int = DEFAULT_CREDIT, *, open: bool = True) -> None:
        self.number = number
        self.credit_bytes = credit_bytes
        self.next_seq = 0
        self.safe = -1
        self.consumed = -1
        self.sent = -1
        """The last frame that has left towards the present consumer."""
        self.open = open
        """False: a promoted producer does not know yet what the consumer has."""
        self.epoch = NEVER
        """The consumer's: older ones are refused."""
        self.bytes = 0
        """Kept."""
        self.in_flight = 0
        """Bytes not consumed yet, released or not: what the credit bounds."""
        self.counted = True
        """Whether its credit bounds what is processed."""
        self.gone = False
        """There is no consumer any more: frames are numbered and not kept."""
        self._kept: deque[Output] = deque()

    @property
    def ready(self) -> bool:
        """Whether there is credit for the output of another data frame."""
        return self.in_flight < self.credit_bytes or self.gone or not self.counted

    @property
    def waiting(self) -> bool:
        """Whether the consumer owes an answer."""
        return not self.gone and (not self.open or self.sent > self.consumed)

    @property
    def done(self) -> bool:
        """Whether all that was made is consumed."""
        return self.gone or self.consumed == self.next_seq - 1

    def drop(self) -> None:
        """The consumer is gone for ever."""
        self.gone = True
        self._kept.clear()
        self.bytes = self.in_flight = 0

    @property
    def first(self) -> int:
        """The oldest frame kept (or the next one)."""
        return self.next_seq - len(self._kept)

    def emit(self, position: int, payload: bytes) -> int:
        """Number and keep a frame that depends on the order log through `position`."""
        seq = self.next_seq
        self.next_seq += 1
        if seq > self.safe and not self.gone:  # otherwise a replay of what the consumer has safe
            self._kept.append(Output(seq, position, payload))
            self.bytes += len(payload)
            if seq > self.consumed:
                self.in_flight += len(payload)
        return seq

    def release(self, through: int | None, epoch: Epoch) -> tuple[list[Data], int]:
        """What may leave now, given that the log is acknowledged `through` (`None`: nobody has to), and the greatest
        position that it depends on (0: none)."""
        frames: list[Data] = []
        deepest = 0
        if not self.open or self.gone or self.sent + 1 >= self.next_seq:
            return frames, deepest
        for place in range(max(0, self.sent + 1 - self.first), len(self._kept)):
            output = self._kept[place]
            if through is not None and output.position > through:
                break
            frames.append(Data(epoch, self.number, output.seq, output.payload))
            self.sent, deepest = output.seq, output.position
        return frames, deepest

    def confirm(self, next_seq: int, consumed: int, safe: int) -> None:
        """The consumer's marks; they never go back within its epoch."""
        if consumed > self.consumed:
            first = self.first
            for place in range(max(0, self.consumed + 1 - first), min(len(self._kept), consumed + 1 - first)):
                self.in_flight -= len(self._kept[place].payload)
            self.consumed = consumed
        self.safe = max(self.safe, safe)
        while self._kept and self._kept[0].seq <= self.safe:
            gone = self._kept.popleft()
            self.bytes -= len(gone.payload)
            if gone.seq > self.consumed:
                self.in_flight -= len(gone.payload)
        if not self.open:
            self.open = True
            self.sent = next_seq - 1
        self.sent = max(self.sent, self.safe)

    def resume(self, next_seq: int) -> bool:
        """The consumer wants everything from `next_seq` on; false when that is not kept any more."""
        if next_seq <= self.safe:
            return False
        self.open = True
        self.sent = next_seq - 1
        if next_seq <= self.consumed:  # a promoted consumer begins earlier
            self.consumed = next_seq - 1
            self.in_flight = sum(len(output.payload) for output in self._kept if output.seq > self.consumed)
        return True

    def again(self) -> None:
        """What was not consumed may be lost: it is released once more."""
        self.sent = min(self.sent, max(self.consumed, self.safe))

    def kept(self) -> tuple[Output, ...]:
        """What is kept now."""
        return tuple(self._kept)

    def begin_at(self, next_seq: int) -> None:
        """Everything before this number is safe already."""
        self.next_seq = next_seq
        self.safe = self.consumed = self.sent = next_seq - 1

    def load(self, next_seq: int, outputs: tuple[Output, ...]) -> None:
        """Go on from a checkpoint. What it does not keep is safe: this replica need not have been told so."""
        self.safe = max(self.safe, (outputs[0].seq if outputs else next_seq) - 1)
        self.consumed = max(self.consumed, self.safe)
        self._kept = deque(output for output in outputs if output.seq > self.safe and not self.gone)
        self.next_seq = next_seq
        self.bytes = sum(len(output.payload) for output in self._kept)
        self.in_flight = sum(len(output.payload) for output in self._kept if output.seq > self.consumed)
