"""What a replica takes over of an output line."""

from __future__ import annotations

import pytest

from penstock.exchange.replica.lines import OutputLine
from penstock.exchange.replica.messages import Output


@pytest.mark.parametrize(("kept", "safe"), [((), 6), ((5, 6), 4), ((0, 1, 2, 3, 4, 5, 6), -1)])
def test_what_a_checkpoint_does_not_keep_is_safe(kept, safe):
    """Also when the primary had no reason to say so: a sink goes on behind it, and asks for nothing that is gone."""
    line = OutputLine(1)
    line.load(7, tuple(Output(seq, seq, b"x") for seq in kept))
    assert line.safe == safe
    line.open = False
    assert line.resume(line.safe + 1)
    frames, _ = line.release(None, (1, 1))
    assert [frame.seq for frame in frames] == list(kept)
