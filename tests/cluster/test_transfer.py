"""Fetching from sources that lie, die, lack, dawdle, and from good ones."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.cluster import packages
from tests.cluster.packages import Stuck, asynchronous

from penstock.cluster import transfer
from penstock.cluster.disk import DiskError, LibraryError
from penstock.cluster.transfer import CHUNK, TransferError, fetch
from penstock.errors import ClusterError

DATA = os.urandom(3 * CHUNK + 12_345)
DIGEST = hashlib.sha256(DATA).hexdigest()


class Peer(packages.Peer):
    """A source of `DATA`, if nothing else is said."""

    def __init__(self, name="n1", data=DATA, **faults):
        super().__init__(name, data, **faults)


async def get(path, *sources, data=DATA, limit=2**30, patience=30.0):
    problems = await fetch(hashlib.sha256(data).hexdigest(), sources, path, limit=limit, patience=patience)
    assert path.read_bytes() == data
    return problems


@asynchronous
async def test_one_good_source_is_enough_and_the_others_are_not_asked(tmp_path):
    first, second = Peer("n1"), Peer("n2")
    assert await get(tmp_path / "p", first, second) == {}
    assert first.asked == [0, CHUNK, 2 * CHUNK, 3 * CHUNK]
    assert second.asked == []


@asynchronous
async def test_small_answers_make_a_whole(tmp_path):
    assert await get(tmp_path / "p", Peer(data=DATA[:1000], most=7), data=DATA[:1000]) == {}


@asynchronous
async def test_a_source_that_lacks_it_is_passed_over(tmp_path):
    assert await get(tmp_path / "p", Peer("n1", lacks=True), Peer("n2")) == {"n1": "it does not have it"}


@asynchronous
async def test_the_next_source_goes_on_where_one_has_died(tmp_path):
    second = Peer("n2")
    assert await get(tmp_path / "p", Peer("n1", dies=2 * CHUNK), second) == {"n1": "n1 is gone"}
    assert second.asked == [2 * CHUNK, 3 * CHUNK]


@asynchronous
async def test_the_next_source_goes_on_where_one_has_no_more(tmp_path):
    second = Peer("n2")
    problems = await get(tmp_path / "p", Peer("n1", short=CHUNK + 100), second)
    assert "sent 0 bytes" in problems["n1"]
    assert second.asked[0] == CHUNK + 100


@asynchronous
async def test_the_next_source_goes_on_where_one_is_stuck(tmp_path):
    second = Peer("n2")
    assert await get(tmp_path / "p", Stuck("n1", DATA, 1), second, patience=0.2) == {"n1": "no answer within 0.2 s"}
    assert second.asked == [CHUNK, 2 * CHUNK, 3 * CHUNK]


@asynchronous
async def test_a_corrupt_copy_is_named_and_fetched_anew_from_another(tmp_path):
    second = Peer("n2")
    problems = await get(tmp_path / "p", Peer("n1", flip=CHUNK), second)
    assert list(problems) == ["n1"]
    assert "corrupt" in problems["n1"]
    assert second.asked[0] == 0


@asynchronous
async def test_who_of_several_was_corrupt_is_found_out(tmp_path):
    with pytest.raises(TransferError) as caught:
        await get(tmp_path / "p", Peer("n1", dies=CHUNK), Peer("n2", flip=CHUNK + 1), Peer("n3", dies=0))
    problems = caught.value.problems
    assert (problems["n1"], problems["n3"]) == ("n1 is gone", "n3 is gone")
    assert "corrupt" in problems["n2"]


@asynchronous
async def test_sources_that_took_no_part_in_a_corrupt_copy_come_first(tmp_path):
    first, second, third = Peer("n1", flip=5, dies=CHUNK), Peer("n2"), Peer("n3")
    await get(tmp_path / "p", first, second, third)
    assert (first.asked, second.asked) == ([0, CHUNK], [CHUNK, 2 * CHUNK, 3 * CHUNK])
    assert third.asked == [0, CHUNK, 2 * CHUNK, 3 * CHUNK]


@pytest.mark.parametrize("size", [len(DATA) * 2, len(DATA) + 1, len(DATA) - 1, CHUNK])
@asynchronous
async def test_a_wrong_size_is_found_out(tmp_path, size):
    assert "n1" in await get(tmp_path / "p", Peer("n1", size=size), Peer("n2"))


@pytest.mark.parametrize("size", [0, -1, 2**40])
@asynchronous
async def test_an_impossible_size_is_not_waited_for(tmp_path, size):
    liar = Peer("n1", size=size)
    assert "bytes" in (await get(tmp_path / "p", liar, Peer("n2")))["n1"]
    assert liar.asked == [0]


@asynchronous
async def test_more_than_was_asked_for_is_refused(tmp_path):
    problems = await get(tmp_path / "p", Peer("n1", extra=b"x"), Peer("n2"))
    assert f"sent {CHUNK + 1} bytes" in problems["n1"]


@asynchronous
async def test_without_a_good_source_every_reason_is_told(tmp_path):
    sources = [Peer("n1", lacks=True), Peer("n2", dies=CHUNK), Peer("n3", flip=CHUNK)]
    with pytest.raises(TransferError) as caught:
        await get(tmp_path / "p", *sources)
    assert list(caught.value.problems) == ["n1", "n2", "n3"]
    for text in ("n1: it does not have it", "n2: n2 is gone", "n3: its copy is corrupt", DIGEST[:12]):
        assert text in str(caught.value)
    assert isinstance(caught.value, LibraryError)


@asynchronous
async def test_without_any_source_the_error_says_so(tmp_path):
    with pytest.raises(TransferError, match="no other node to ask"):
        await get(tmp_path / "p")


@asynchronous
async def test_a_cancelled_fetch_ends_and_writes_no_more(tmp_path):
    source = Stuck("n1", DATA, 2)
    task = asyncio.create_task(get(tmp_path / "p", source))
    while len(source.asked) < 2 or (tmp_path / "p").stat().st_size < 2 * CHUNK:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await get(tmp_path / "q", Stuck("n1", DATA, 0))


@pytest.mark.parametrize("then", ["answers", "fails"])
@asynchronous
async def test_a_cancellation_that_a_source_swallows_counts(tmp_path, then):
    class Deaf(Peer):
        async def read(self, digest, offset, size):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            if then == "fails":
                raise ClusterError("the connection was closed")
            return await super().read(digest, offset, size)

    task = asyncio.create_task(get(tmp_path / "p", Deaf("n1"), Peer("n2")))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@asynchronous
async def test_what_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "free_space", lambda path: 1000)
    source = Peer("n1")
    with pytest.raises(DiskError, match=rf"full at {tmp_path}/p: {len(DATA)} bytes are needed"):
        await get(tmp_path / "p", source)
    assert source.asked == [0]


def test_a_disk_that_fills_up_meanwhile_is_told(tmp_path):
    code = """
        import asyncio, sys
        from pathlib import Path
        from tests.cluster.test_transfer import DATA, Peer, get
        try:
            asyncio.run(get(Path(sys.argv[1]), Peer("n1"), Peer("n2")))
        except Exception as error:
            print(type(error).__name__, error)
        """

    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK * 3 // 2, CHUNK * 3 // 2))

    command = [sys.executable, "-B", "-c", textwrap.dedent(code), str(tmp_path / "p")]
    said = subprocess.run(command, preexec_fn=small_files, capture_output=True, text=True, timeout=60)
    assert said.stdout.startswith(f"DiskError the disk is full at {tmp_path}/p: {len(DATA)} bytes"), said
    assert "n1" not in said.stdout


SMALL = bytes(range(256)) * 20
FAULTS = st.fixed_dictionaries(
    {
        "dies": st.none() | st.integers(0, len(SMALL)),
        "short": st.none() | st.integers(0, len(SMALL)),
        "size": st.none() | st.integers(1, 2 * len(SMALL)),
        "flip": st.none() | st.integers(0, len(SMALL) - 1),
        "most": st.integers(1000, CHUNK),
        "lacks": st.booleans(),
        "extra": st.sampled_from([b"", b"x"]),
    }
)


@given(faults=st.lists(FAULTS, max_size=4), place=st.integers(0, 4))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_good_source_wins_over_any_others(tmp_path, faults, place):
    sources = [Peer(f"n{index}", SMALL, **fault) for index, fault in enumerate(faults)]
    sources.insert(place, Peer("good", SMALL))
    problems = asyncio.run(get(tmp_path / "p", *sources, data=SMALL))
    assert "good" not in problems


@given(faults=st.lists(FAULTS, max_size=4))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_without_a_good_one_there_is_the_right_package_or_an_error(tmp_path, faults):
    sources = [Peer(f"n{index}", SMALL, **fault) for index, fault in enumerate(faults)]
    told = {source.name for source in sources}
    try:
        asyncio.run(get(tmp_path / "p", *sources, data=SMALL))
    except TransferError as error:
        told = set(error.problems)
    assert told == {source.name for source in sources}
