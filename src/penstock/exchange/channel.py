"""Both ends of a channel as pure state machines: dense sequence numbers, byte credit, epochs, repeats and gaps.

A channel leads from one producer executor to one consumer executor. Its epoch is the greater of the two executors'
epochs, so a restart of either makes a new one and whatever is still under way from before is refused.

With recovery none nothing is kept: frames that were with a dead consumer are lost and counted (`Sender.lost`), and a
gap is accepted and counted. With `retain` the producer keeps every frame until it is acknowledged and sends it again on
request; the consumer takes each exactly once and in order.

Only DATA frames wait for credit. Barriers, watermarks and END may always be sent: what is aligned or ended upstream
must never depend on room downstream, or checkpoints could dead-lock.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import NamedTuple

from penstock.errors import ExchangeError
from penstock.exchange.frame import Epoch, restamp
from penstock.settings import RunSettings

DEFAULT_CREDIT = RunSettings().credit_bytes
_ACK_SHARE = 4
"""The consumer acknowledges when it has consumed so great a part (1/n) of the credit."""


class _Sent(NamedTuple):
    size: int
    records: int
    frame: bytes | None


class Loss(NamedTuple):
    """What was sent and not acknowledged."""

    frames: int
    records: int


class Sender:
    """The producer's end.

    `credit_bytes` bounds what is in flight: the producer takes no further input while a sender is not `ready`; the
    frame that crosses the bound is still sent. Frames get numbers from `start`, without a hole.
    """

    __slots__ = (
        "_in_flight", "_next", "_outstanding", "bad_acks", "bytes", "credit_bytes", "epoch", "frames", "records",
        "repeated", "retain", "stale_acks",
    )  # fmt: skip

    def __init__(
        self, epoch: Epoch, credit_bytes: int = DEFAULT_CREDIT, retain: bool = False, *, start: int = 0
    ) -> None:
        if credit_bytes < 1:
            raise ExchangeError(f"a channel needs a credit of at least 1 byte, not {credit_bytes}")
        self.epoch = epoch
        self.credit_bytes = credit_bytes
        self.retain = retain
        self._next = start
        self._outstanding = 0
        self._in_flight: deque[_Sent] = deque()
        self.frames = 0
        """Frames sent, repeats not counted."""
        self.records = 0
        self.bytes = 0
        self.repeated = 0
        """Frames sent again."""
        self.stale_acks = 0
        """Answers of another epoch, refused."""
        self.bad_acks = 0
        """Answers about frames that were never sent, refused."""

    @property
    def ready(self) -> bool:
        """Whether there is credit for another data frame."""
        return self._outstanding < self.credit_bytes

    @property
    def outstanding(self) -> int:
        """Bytes sent and not acknowledged."""
        return self._outstanding

    @property
    def acked(self) -> int:
        """Every frame up to this one is acknowledged (`start - 1`: none is)."""
        return self._next - len(self._in_flight) - 1

    def next_seq(self) -> int:
        """The number that the next frame must carry."""
        return self._next

    def sent(self, size: int, records: int = 0, frame: bytes | None = None) -> int:
        """Note that the next frame was handed to the transport; returns its number. `size` is that of the whole frame
        in bytes, and the consumer must account the same. With `retain`, `frame` is kept."""
        if self.retain and frame is None:
            raise ExchangeError("a retaining sender was not given the frame to keep")
        seq = self._next
        self._next = seq + 1
        self._outstanding += size
        self._in_flight.append(_Sent(size, records, frame if self.retain else None))
        self.frames += 1
        self.records += records
        self.bytes += size
        return seq

    def on_ack(self, epoch: Epoch, seq_through: int) -> None:
        """Frames up to `seq_through` are consumed: free their credit and forget them. A repeated or overtaken
        acknowledgement changes nothing; one of another epoch, or of a frame never sent, is refused and counted."""
        if self._refuses(epoch, seq_through + 1):
            return
        for _ in range(seq_through - self.acked):
            self._outstanding -= self._in_flight.popleft().size

    def on_nack(self, epoch: Epoch, from_seq: int) -> list[bytes]:
        """The consumer misses everything from `from_seq` on: the frames to send again, oldest first. It also means
        that everything before `from_seq` arrived, but not that it was consumed."""
        if self._refuses(epoch, from_seq):
            return []
        return self._again(from_seq)

    def resend(self) -> list[bytes]:
        """Everything unacknowledged, oldest first: for a channel that has been silent for suspiciously long."""
        return self._again(self.acked + 1)

    def lost(self) -> Loss:
        """What is lost if the consumer is dead and nothing was retained."""
        return Loss(len(self._in_flight), sum(sent.records for sent in self._in_flight))

    def reset(self, epoch: Epoch, resend_from: int | None = None) -> list[bytes]:
        """Speak to a new incarnation of the consumer (or as a new one of the producer).

        `resend_from` is the consumer's `next_seq`, which implies that it has safely got everything before: the retained
        frames from there on are returned, to be sent in the new epoch. `None` starts anew with sequence number 0 and
        full credit; what was in flight is forgotten (ask `lost` before). Raises `ExchangeError` for an epoch that is
        not greater, or for frames that are no longer kept.
        """
        if epoch <= self.epoch:
            raise ExchangeError(f"a channel of epoch {self.epoch} cannot go on as the older or equal {epoch}")
        if resend_from is None:
            self.epoch = epoch
            self._in_flight.clear()
            self._next = self._outstanding = 0
            return []
        if not self.retain or not self.acked < resend_from <= self._next:
            kept = f"{self.acked + 1} to {self._next - 1}" if self.retain and self._in_flight else "none"
            raise ExchangeError(f"the consumer needs frames from {resend_from} on; kept are: {kept}")
        self.on_ack(self.epoch, resend_from - 1)
        self.epoch = epoch
        self._in_flight = deque(
            sent._replace(frame=restamp(sent.frame, epoch)) for sent in self._in_flight if sent.frame is not None
        )
        return self._again(resend_from)

    def _refuses(self, epoch: Epoch, next_seq: int) -> bool:
        if epoch != self.epoch:
            self.stale_acks += 1
            return True
        if not 0 <= next_seq <= self._next:
            self.bad_acks += 1
            return True
        return False

    def _again(self, from_seq: int) -> list[bytes]:
        skip = max(0, from_seq - self.acked - 1)
        frames = [sent.frame for sent in list(self._in_flight)[skip:] if sent.frame is not None]
        self.repeated += len(frames)
        return frames


class Verdict(Enum):
    """What to do with a frame that came in."""

    ACCEPT = "accept"
    """Take it: it is the next one (or, with recovery none, a later one)."""
    REPEAT = "repeat"
    """Drop it: it was taken before."""
    GAP = "gap"
    """Drop it: an earlier one is missing; see `Receiver.nack`."""
    STALE = "stale"
    """Drop it: it is of an older epoch."""


class Receiver:
    """The consumer's end.

    `retain` and `credit_bytes` are those of the sender. `next_seq`, the number expected next, is the channel's
    high-water mark in a checkpoint.
    """

    __slots__ = (
        "_ack_from", "_acked", "_asked", "_consumed", "_unacked", "epoch", "gaps", "lost_frames", "next_seq", "repeats",
        "retain", "stale",
    )  # fmt: skip

    def __init__(
        self, epoch: Epoch, credit_bytes: int = DEFAULT_CREDIT, retain: bool = False, *, start: int = 0
    ) -> None:
        self.epoch = epoch
        self.retain = retain
        self.next_seq = start
        self._ack_from = max(1, credit_bytes // _ACK_SHARE)
        self._consumed = self._acked = start - 1
        self._unacked = 0
        self._asked = -1
        self.repeats = 0
        self.gaps = 0
        self.stale = 0
        self.lost_frames = 0
        """Frames that never came, with recovery none."""

    def receive(self, epoch: Epoch, seq: int, size: int) -> Verdict:
        """Judge a frame of `size` bytes. A newer epoch is adopted: with recovery none its numbers begin at 0 again,
        with `retain` they go on."""
        if epoch != self.epoch:
            if epoch < self.epoch:
                self.stale += 1
                return Verdict.STALE
            self.reset(epoch)
        expected = self.next_seq
        if seq == expected:
            self.next_seq = seq + 1
            return Verdict.ACCEPT
        if seq < expected:
            self.repeats += 1
            if self.retain:
                # It was sent again because its acknowledgement did not arrive: say it once more.
                self._acked = min(self._acked, seq - 1)
            return Verdict.REPEAT
        self.gaps += 1
        if self.retain:
            return Verdict.GAP
        self.lost_frames += seq - expected
        self.next_seq = seq + 1
        return Verdict.ACCEPT

    def nack(self, again: bool = False) -> int | None:
        """After a `GAP`: the number to ask for, once per gap; `None` when it was asked already. `again` asks once more
        (after silence: the request or its answer may be lost)."""
        if self._asked == self.next_seq and not again:
            return None
        self._asked = self.next_seq
        return self.next_seq

    def consumed(self, seq: int, size: int, epoch: Epoch | None = None) -> int | None:
        """An accepted frame was processed (frames are processed in order). Returns the number to acknowledge now, or
        `None` while too little has come together to be worth a frame. Give the frame's `epoch` where the producer may
        have been replaced while the frame waited: its number means nothing to the new one."""
        if epoch is not None and epoch != self.epoch and not self.retain:
            return None
        self._consumed = seq
        self._unacked += size
        return self.flush_ack() if self._unacked >= self._ack_from else None

    def flush_ack(self) -> int | None:
        """The number to acknowledge when there is nothing else to do; `None` when everything has been acknowledged."""
        if self._consumed <= self._acked:
            return None
        self._acked = self._consumed
        self._unacked = 0
        return self._acked

    def reset(self, epoch: Epoch) -> None:
        """Go on with a new incarnation of the producer: with recovery none its numbers begin at 0 again, with `retain`
        they go on. Raises `ExchangeError` for an epoch that is not greater."""
        if epoch <= self.epoch:
            raise ExchangeError(f"a channel of epoch {self.epoch} cannot go on as the older or equal {epoch}")
        self.epoch = epoch
        self._asked = -1
        if not self.retain:
            self.next_seq = 0
            self._consumed = self._acked = -1
            self._unacked = 0
