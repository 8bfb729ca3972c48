"""Sender and receiver, one event at a time."""

from __future__ import annotations

import pytest

from penstock.errors import ExchangeError
from penstock.exchange.channel import Loss, Receiver, Sender, Verdict
from penstock.exchange.frame import Header, Kind, decode, encode

E1, E2, E3 = (1, 1), (1, 2), (2, 0)


def filled(count: int, *, credit: int = 1000, retain: bool = False) -> Sender:
    """A sender that has sent `count` real frames."""
    sender = Sender(E1, credit, retain)
    for seq in range(count):
        frame = encode(Header(Kind.DATA, 0, *E1, seq), bytes([seq]))
        sender.sent(100, 10, frame)
    return sender


def seqs(frames: list[bytes]) -> list[int]:
    return [decode(frame)[0].seq for frame in frames]


def test_numbers_are_dense_from_the_start():
    sender = Sender(E1, 1000, start=5)
    assert (sender.next_seq(), sender.acked) == (5, 4)
    assert [sender.sent(1), sender.sent(1)] == [5, 6]
    assert sender.next_seq() == 7


def test_credit_is_used_up_and_given_back():
    sender = filled(9)
    assert (sender.ready, sender.outstanding) == (True, 900)
    sender.sent(500, 1)  # the frame that crosses the bound is still sent
    assert (sender.ready, sender.outstanding) == (False, 1400)
    sender.on_ack(E1, 3)
    assert (sender.ready, sender.outstanding, sender.acked) == (False, 1000, 3)
    sender.on_ack(E1, 9)
    assert (sender.ready, sender.outstanding) == (True, 0)


def test_repeated_and_overtaken_acks_change_nothing():
    sender = filled(5)
    sender.on_ack(E1, 3)
    sender.on_ack(E1, 3)
    sender.on_ack(E1, 1)
    sender.on_ack(E1, -1)
    assert (sender.outstanding, sender.acked, sender.bad_acks) == (100, 3, 0)


def test_bad_acks_are_refused_and_counted():
    sender = filled(5)
    sender.on_ack(E1, 5)
    sender.on_ack(E1, -2)
    sender.on_ack((1, 0), 2)
    sender.on_ack(E2, 2)
    assert (sender.outstanding, sender.bad_acks, sender.stale_acks) == (500, 2, 2)
    assert sender.on_nack(E2, 0) == []
    assert sender.on_nack(E1, 6) == []
    assert (sender.bad_acks, sender.stale_acks) == (3, 3)


def test_a_request_brings_retained_frames_again():
    sender = filled(5, retain=True)
    sender.on_ack(E1, 1)
    assert seqs(sender.on_nack(E1, 3)) == [3, 4]
    assert seqs(sender.on_nack(E1, 0)) == [2, 3, 4]
    assert seqs(sender.resend()) == [2, 3, 4]
    assert sender.on_nack(E1, 5) == []
    assert sender.repeated == 8
    assert sender.outstanding == 300, "sending again costs no credit"


def test_nothing_is_retained_without_recovery():
    sender = filled(5)
    assert sender.on_nack(E1, 0) == []
    with pytest.raises(ExchangeError, match="not given the frame"):
        Sender(E1, 1000, True).sent(10)


def test_loss_is_told_and_a_new_start_forgets_it():
    sender = filled(5)
    sender.on_ack(E1, 1)
    assert sender.lost() == Loss(frames=3, records=30)
    assert sender.reset(E2) == []
    assert (sender.next_seq(), sender.outstanding, sender.ready, sender.lost()) == (0, 0, True, Loss(0, 0))
    sender.sent(1)
    sender.on_ack(E1, 0)
    assert (sender.stale_acks, sender.outstanding) == (1, 1)


def test_a_new_consumer_gets_what_is_retained_in_its_epoch():
    sender = filled(5, retain=True)
    sender.on_ack(E1, 0)
    again = sender.reset(E2, resend_from=2)
    assert seqs(again) == [2, 3, 4]
    assert [(decode(frame)[0].epoch, bytes(decode(frame)[1])) for frame in again] == [
        (E2, bytes([i])) for i in (2, 3, 4)
    ]
    assert (sender.outstanding, sender.acked, sender.next_seq()) == (300, 1, 5)
    assert seqs(sender.on_nack(E2, 4)) == [4]


@pytest.mark.parametrize("resend_from", [0, 1, 6])
def test_frames_that_are_not_kept_cannot_be_sent_again(resend_from):
    sender = filled(5, retain=True)
    sender.on_ack(E1, 1)
    with pytest.raises(ExchangeError, match=f"frames from {resend_from} on; kept are: 2 to 4"):
        sender.reset(E2, resend_from=resend_from)
    assert sender.epoch == E1


def test_epochs_only_grow():
    with pytest.raises(ExchangeError, match="older or equal"):
        Sender(E2, 10).reset(E1)
    with pytest.raises(ExchangeError, match="older or equal"):
        Receiver(E2).reset(E2)
    with pytest.raises(ExchangeError, match="at least 1 byte"):
        Sender(E1, 0)


def test_the_receiver_takes_each_frame_once():
    receiver = Receiver(E1, 1000)
    assert [receiver.receive(E1, seq, 1) for seq in (0, 1, 1, 0, 2)] == [
        Verdict.ACCEPT,
        Verdict.ACCEPT,
        Verdict.REPEAT,
        Verdict.REPEAT,
        Verdict.ACCEPT,
    ]
    assert (receiver.next_seq, receiver.repeats) == (3, 2)


def test_with_retain_a_gap_is_asked_for_once():
    receiver = Receiver(E1, 1000, retain=True)
    assert receiver.receive(E1, 0, 1) is Verdict.ACCEPT
    assert receiver.receive(E1, 2, 1) is Verdict.GAP
    assert receiver.nack() == 1
    assert receiver.receive(E1, 3, 1) is Verdict.GAP
    assert receiver.nack() is None
    assert receiver.nack(again=True) == 1
    assert [receiver.receive(E1, seq, 1) for seq in (1, 2, 3)] == [Verdict.ACCEPT] * 3
    assert receiver.receive(E1, 5, 1) is Verdict.GAP
    assert receiver.nack() == 4, "the next gap is another one"
    assert (receiver.gaps, receiver.lost_frames) == (3, 0)


def test_without_recovery_a_gap_is_accepted_and_counted():
    receiver = Receiver(E1, 1000)
    assert [receiver.receive(E1, seq, 1) for seq in (0, 4)] == [Verdict.ACCEPT] * 2
    assert (receiver.lost_frames, receiver.gaps, receiver.next_seq) == (3, 1, 5)
    assert receiver.receive(E1, 2, 1) is Verdict.REPEAT, "order is kept: what was counted as lost stays lost"


def test_older_epochs_are_refused():
    receiver = Receiver(E2, 1000)
    assert receiver.receive(E1, 0, 1) is Verdict.STALE
    assert (receiver.stale, receiver.next_seq) == (1, 0)


def test_a_newer_producer_begins_at_zero_without_recovery():
    receiver = Receiver(E1, 1000)
    for seq in range(5):
        receiver.receive(E1, seq, 100)
    receiver.consumed(0, 100, E1)
    assert receiver.receive(E2, 0, 100) is Verdict.ACCEPT
    assert receiver.consumed(1, 1000, E1) is None, "a frame of the old producer must not be confirmed to the new one"
    assert receiver.flush_ack() is None
    assert receiver.consumed(0, 100, E2) is None
    assert receiver.flush_ack() == 0
    assert receiver.receive(E1, 5, 1) is Verdict.STALE


def test_a_newer_producer_goes_on_with_retain():
    receiver = Receiver(E1, 1000, retain=True)
    for seq in range(5):
        receiver.receive(E1, seq, 100)
    receiver.consumed(0, 100, E1)
    assert receiver.receive(E2, 3, 100) is Verdict.REPEAT
    assert receiver.receive(E2, 5, 100) is Verdict.ACCEPT
    assert receiver.consumed(1, 150, E1) == 1


def test_acks_are_batched_to_a_quarter_of_the_credit():
    receiver = Receiver(E1, 1000)
    for seq in range(6):
        receiver.receive(E1, seq, 100)
    assert [receiver.consumed(seq, 100) for seq in range(6)] == [None, None, 2, None, None, 5]
    assert receiver.flush_ack() is None
    receiver.receive(E1, 6, 100)
    assert receiver.flush_ack() is None, "accepted is not consumed"
    assert receiver.consumed(6, 100) is None
    assert receiver.flush_ack() == 6
    assert receiver.flush_ack() is None


@pytest.mark.parametrize("credit", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("size", [1, 2, 50, 1000])
def test_batched_acks_never_starve_a_sender(credit, size):
    sender, receiver = Sender(E1, credit), Receiver(E1, credit)
    for _ in range(200):
        sent = []
        while sender.ready:
            sent.append(sender.sent(size, 1))
        assert sent, "a sender without credit although everything was consumed"
        for seq in sent:
            assert receiver.receive(E1, seq, size) is Verdict.ACCEPT
            ack = receiver.consumed(seq, size)
            if ack is not None:
                sender.on_ack(E1, ack)


def test_a_repeat_brings_a_lost_ack_again():
    receiver = Receiver(E1, 1000, retain=True)
    receiver.receive(E1, 0, 100)
    receiver.consumed(0, 100)
    assert receiver.flush_ack() == 0
    assert receiver.receive(E1, 0, 100) is Verdict.REPEAT
    assert receiver.flush_ack() == 0
