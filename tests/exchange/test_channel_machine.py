"""Sender and receiver over a link that loses, repeats and reorders, with consumers that are replaced."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.exchange.channel import Receiver, Sender, Verdict
from penstock.exchange.frame import Header, Kind, decode, encode

CREDIT = 500


class Retaining(RuleBasedStateMachine):
    """With `retain`: everything arrives exactly once and in order, whatever happens to frames and answers."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch = (1, 1)
        self.sender = Sender(self.epoch, CREDIT, True)
        self.receiver = Receiver(self.epoch, CREDIT, True)
        self.sizes: list[int] = []
        self.frames: list[bytes] = []
        self.answers: list[tuple[tuple[int, int], Kind, int]] = []
        self.accepted: list[int] = []
        self.processed = 0

    def answer(self, kind: Kind, seq: int | None) -> None:
        if seq is not None:
            self.answers.append((self.receiver.epoch, kind, seq))

    @precondition(lambda self: self.sender.ready)
    @rule(size=st.integers(0, 200))
    def produce(self, size: int) -> None:
        seq = self.sender.next_seq()
        frame = encode(Header(Kind.DATA, 3, *self.sender.epoch, seq, records=1), bytes(size))
        assert self.sender.sent(len(frame), 1, frame) == seq == len(self.sizes)
        self.sizes.append(len(frame))
        self.frames.append(frame)

    @precondition(lambda self: self.frames)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.frames.pop(data.draw(st.integers(0, len(self.frames) - 1)))

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def lose_answer(self, data: st.DataObject) -> None:
        self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1)))

    @precondition(lambda self: self.frames)
    @rule(data=st.data(), repeat=st.booleans())
    def arrive(self, data: st.DataObject, repeat: bool) -> None:
        place = data.draw(st.integers(0, min(2, len(self.frames) - 1)))
        frame = self.frames[place] if repeat else self.frames.pop(place)
        header, _ = decode(frame)
        verdict = self.receiver.receive(header.epoch, header.seq, len(frame))
        assert (verdict is Verdict.STALE) == (header.epoch < self.epoch)
        if verdict is Verdict.ACCEPT:
            self.accepted.append(header.seq)
        elif verdict is Verdict.GAP:
            assert header.seq > len(self.accepted)
            self.answer(Kind.NACK, self.receiver.nack())

    @precondition(lambda self: self.processed < len(self.accepted))
    @rule()
    def process(self) -> None:
        seq = self.accepted[self.processed]
        self.processed += 1
        self.answer(Kind.ACK, self.receiver.consumed(seq, self.sizes[seq]))

    @rule()
    def quiet(self) -> None:
        self.answer(Kind.ACK, self.receiver.flush_ack())

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        epoch, kind, seq = self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1)))
        if kind is Kind.ACK:
            self.sender.on_ack(epoch, seq)
        else:
            self.frames += self.sender.on_nack(epoch, seq)

    @rule()
    def replace_the_consumer(self) -> None:
        """Its successor has the effect of what was processed, and nothing that only waited."""
        self.epoch = (1, self.epoch[1] + 1)
        self.accepted = self.accepted[: self.processed]
        self.receiver = Receiver(self.epoch, CREDIT, True, start=self.processed)
        self.frames += self.sender.reset(self.epoch, resend_from=self.processed)

    @invariant()
    def in_order_and_once(self) -> None:
        assert self.accepted == list(range(len(self.accepted)))
        assert self.receiver.next_seq == len(self.accepted)

    @invariant()
    def credit_is_exact(self) -> None:
        assert self.sender.outstanding == sum(self.sizes[self.sender.acked + 1 :])
        assert self.sender.acked < self.processed or self.processed == 0, "acknowledged before it was processed"
        assert self.sender.ready == (self.sender.outstanding < CREDIT)
        assert self.sender.outstanding < CREDIT + 300
        assert self.sender.lost().frames == len(self.sizes) - self.sender.acked - 1

    @invariant()
    def nothing_is_called_bad(self) -> None:
        assert self.sender.bad_acks == 0
        assert self.receiver.lost_frames == 0

    def teardown(self) -> None:
        """With a link that works again, everything gets through."""
        self.frames.clear()
        self.answers.clear()
        for frame in self.sender.resend():
            header, _ = decode(frame)
            if self.receiver.receive(header.epoch, header.seq, len(frame)) is Verdict.ACCEPT:
                self.accepted.append(header.seq)
        for seq in self.accepted[self.processed :]:
            self.receiver.consumed(seq, self.sizes[seq])
        last = self.receiver.flush_ack()
        if last is None:
            last = len(self.accepted) - 1
        self.sender.on_ack(self.epoch, last)
        assert self.accepted == list(range(len(self.sizes)))
        assert self.sender.outstanding == 0


class Forgetting(RuleBasedStateMachine):
    """Recovery none over an ordered link, with producers and consumers that die: nothing is taken twice or out of
    order, and every record is either processed, still under way, or counted as lost."""

    def __init__(self) -> None:
        super().__init__()
        self.counter = 1
        self.sender = Sender((1, 1), CREDIT)
        self.receiver = Receiver((1, 1), CREDIT)
        self.frames: list[tuple[tuple[int, int], int, int]] = []
        self.waiting: list[tuple[tuple[int, int], int, int]] = []
        self.produced = 0
        self.processed: list[int] = []
        self.lost = 0

    @precondition(lambda self: self.sender.ready)
    @rule()
    def produce(self) -> None:
        self.frames.append((self.sender.epoch, self.sender.sent(100, 1), self.produced))
        self.produced += 1

    @precondition(lambda self: self.frames)
    @rule()
    def arrive(self) -> None:
        epoch, seq, record = self.frames.pop(0)
        if self.receiver.receive(epoch, seq, 100) is Verdict.ACCEPT:
            self.waiting.append((epoch, seq, record))

    @precondition(lambda self: self.waiting)
    @rule(deliver=st.booleans())
    def process(self, deliver: bool) -> None:
        epoch, seq, record = self.waiting.pop(0)
        self.processed.append(record)
        ack = self.receiver.consumed(seq, 100, epoch)
        if ack is not None and deliver:
            self.sender.on_ack(self.receiver.epoch, ack)

    @rule()
    def quiet(self) -> None:
        ack = self.receiver.flush_ack()
        if ack is not None:
            self.sender.on_ack(self.receiver.epoch, ack)

    @rule()
    def the_consumer_dies(self) -> None:
        self.counter += 1
        self.lost += self.sender.lost().records
        self.sender.reset((1, self.counter))
        self.receiver = Receiver((1, self.counter), CREDIT)
        self.waiting.clear()

    @rule(told=st.booleans())
    def the_producer_dies(self, told: bool) -> None:
        """Its successor's frames may come before the consumer hears of it."""
        self.counter += 1
        self.sender = Sender((1, self.counter), CREDIT)
        if told:
            self.receiver.reset((1, self.counter))

    @invariant()
    def in_order_and_once(self) -> None:
        assert all(a < b for a, b in zip(self.processed, self.processed[1:], strict=False))

    @invariant()
    def nothing_is_called_bad(self) -> None:
        assert self.sender.bad_acks == 0
        assert self.sender.outstanding == 100 * self.sender.lost().frames


Retaining.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
Forgetting.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestRetaining = Retaining.TestCase
TestForgetting = Forgetting.TestCase
