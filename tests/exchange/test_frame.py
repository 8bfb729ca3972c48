"""The frame format: what goes in comes out, and no damage passes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ExchangeError
from penstock.exchange.frame import HEADER_BYTES, Header, Kind, decode, encode, restamp

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)
headers = st.builds(
    Header,
    kind=st.sampled_from(Kind),
    channel=u32,
    term=u64,
    counter=u64,
    seq=u64,
    watermark=i64,
    origin=i64,
    checkpoint=u64,
    records=u32,
    flags=st.integers(0, 2**16 - 1),
)
SAMPLE = Header(Kind.DATA, 7, 1, 2, 99, 1_700_000_000_000, 5, 3, 4, 1)


@given(headers, st.lists(st.binary(max_size=50), max_size=4))
def test_round_trip(header, parts):
    frame = encode(header, parts)
    found, payload = decode(frame)
    assert found == header
    assert found.kind is header.kind
    assert found.epoch == (header.term, header.counter)
    assert payload == b"".join(parts)
    assert frame == encode(header, b"".join(parts))
    assert len(frame) == HEADER_BYTES + len(payload)


@pytest.mark.parametrize("payload", [b"", b"x", b"some records"])
def test_every_flipped_bit_is_found(payload):
    frame = bytearray(encode(SAMPLE, payload))
    for bit in range(len(frame) * 8):
        frame[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ExchangeError):
            decode(bytes(frame))
        frame[bit // 8] ^= 1 << bit % 8
    assert decode(bytes(frame))[0] == SAMPLE


def test_damage_in_a_long_payload_is_found():
    rng = random.Random(1)
    frame = bytearray(encode(SAMPLE, rng.randbytes(100_000)))
    for _ in range(200):
        damaged = bytearray(frame)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(HEADER_BYTES, len(frame))] ^= rng.randint(1, 255)
        with pytest.raises(ExchangeError, match=r"damaged: its checksum .* channel 7, seq 99, 100000 bytes"):
            decode(bytes(damaged))


@pytest.mark.parametrize("cut", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 3])
def test_a_cut_frame_is_refused(cut):
    with pytest.raises(ExchangeError, match=r"shorter than its header|cut or joined"):
        decode(encode(SAMPLE, b"payload")[:cut])


def test_two_joined_frames_are_refused():
    frame = encode(SAMPLE, b"payload")
    with pytest.raises(ExchangeError, match="cut or joined"):
        decode(frame + frame)


def test_other_bytes_are_refused():
    with pytest.raises(ExchangeError, match="starts with b'GE' instead of b'PS'"):
        decode(b"GET / HTTP/1.1\r\n" * 10)


def test_another_version_is_refused_with_the_remedy():
    frame = bytearray(encode(SAMPLE))
    frame[2] = 9
    with pytest.raises(ExchangeError, match=r"version 9 .* reads version 1\n.*same release"):
        decode(bytes(frame))


def test_an_unknown_kind_is_refused():
    header = Header(Kind.DATA, 7)
    header.kind = 77  # as a later release might send
    with pytest.raises(ExchangeError, match=r"unknown kind 77 .* channel 7"):
        decode(encode(header))


@pytest.mark.parametrize("field", ["channel", "term", "seq", "records", "checkpoint", "flags"])
def test_a_field_out_of_range_is_refused(field):
    header = Header(Kind.DATA, 7)
    setattr(header, field, -1)
    with pytest.raises(ExchangeError, match="cannot be written"):
        encode(header)


def test_decoding_does_not_copy_and_takes_views():
    frame = encode(SAMPLE, b"payload")
    header, payload = decode(memoryview(frame))
    assert header == SAMPLE
    assert payload.obj is frame


def test_restamp_changes_the_epoch_alone():
    header, payload = decode(restamp(encode(SAMPLE, b"payload"), (4, 5)))
    assert header.epoch == (4, 5)
    assert payload == b"payload"
    header.term, header.counter = SAMPLE.epoch
    assert header == SAMPLE
