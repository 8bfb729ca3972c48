"""The node's journal on a real disk."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys

import pytest
from tests.cluster.catalogue_in_redis import asynchronous

from penstock.cluster import local_journal
from penstock.cluster.local_journal import JournalError, JournalInDoubt, LocalJournal
from penstock.cluster.transaction.records import Entry, Journal, Kind, Operation, State, Tx

TX = Tx(
    id="t1",
    operation=Operation(kind=Kind.ADD, model="m", digest="d"),
    base=0,
    participants={"a": 1, "b": 2},
    deadline=5,
    timeout=4,
    by="a",
    key="k",
)
FULL = Journal(
    node="a",
    lineage=("l1", "l2"),
    rev=7,
    models={"m": Entry(name="m", generation=3, state=State.ONLINE, digest="d", config='{"größe": 1}')},
    prepared={"t1": TX},
    decided={"t1": TX},
    members=("a", "b"),
    incarnation=4,
    keys={"k": TX},
)


@pytest.fixture
def file(tmp_path):
    return LocalJournal(tmp_path / "data" / "journal")


def test_there_is_none_at_first(file):
    assert file.load() is None


@asynchronous
async def test_what_was_written_is_read_again_by_another_process(file):
    await file.write(Journal(node="a"))
    await file.write(FULL)
    assert LocalJournal(file.path).load() == FULL
    assert os.listdir(file.path.parent) == ["journal"]
    assert file.path.stat().st_mode & 0o077 == 0


@asynchronous
async def test_writes_at_the_same_time_leave_a_whole_one(file):
    await asyncio.gather(*(file.write(Journal(node="a", rev=rev)) for rev in range(20)))
    found = file.load()
    assert found is not None
    assert 0 <= found.rev < 20


@asynchronous
async def test_a_cancelled_write_is_waited_for(file):
    task = asyncio.create_task(file.write(FULL))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await file.idle(10)
    assert file.load() == FULL


@pytest.mark.parametrize("cut", [0, 10, 40, 90, -1])
def test_a_torn_file_is_refused_with_what_to_do(file, cut):
    file.replace(FULL)
    file.path.write_bytes(file.path.read_bytes()[:cut])
    with pytest.raises(JournalError, match=r"is damaged: .*\n.*move .*journal away"):
        file.load()


def test_every_changed_byte_is_found(file):
    file.replace(FULL)
    good = file.path.read_bytes()
    for at in range(len(good)):
        file.path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(JournalError, match=r"is damaged|of another version"):
            file.load()


def test_a_file_of_a_later_version_is_left_alone(file):
    file.replace(FULL)
    file.path.write_bytes(b"penstock-journal-2 " + file.path.read_bytes()[19:])
    with pytest.raises(JournalError, match=r"another version of Penstock \(penstock-journal-2\)"):
        file.load()


@asynchronous
async def test_a_write_that_fails_leaves_the_old_one_and_says_why(file):
    file.replace(FULL)
    (file.path.parent / "journal.new").mkdir()  # stands for a directory that cannot be written: root may write any
    with pytest.raises(JournalError, match=r"journal cannot be written: Is a directory\n.*make room"):
        await file.write(Journal(node="a"))
    assert file.load() == FULL


def test_a_directory_that_cannot_be_made_is_an_error_with_the_reason(tmp_path):
    (tmp_path / "data").write_text("not a directory")
    with pytest.raises(JournalError, match=r"cannot be written: (File exists|Not a directory)"):
        LocalJournal(tmp_path / "data" / "journal").replace(FULL)


def test_a_full_disk_leaves_the_old_one(file):
    file.replace(Journal(node="a"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(JournalError, match=r"cannot be written: File too large"):
            file.replace(FULL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.load() == Journal(node="a")
    assert os.listdir(file.path.parent) == ["journal"]


def test_a_disk_that_does_not_confirm_is_told_from_a_write_that_failed(file, monkeypatch):
    def fails(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(local_journal, "_sync_directory", fails)
    with pytest.raises(JournalInDoubt, match=r"did not confirm .*Input/output error"):
        file.replace(FULL)


WRITER = """
import sys
from pathlib import Path
from penstock.cluster.local_journal import LocalJournal
from penstock.cluster.transaction.records import Journal
file = LocalJournal(Path(sys.argv[1]))
for rev in range(100_000):
    file.replace(Journal(node="a" * 5000, rev=rev))
    if rev == 20:
        print("going", flush=True)
"""


def test_a_process_that_is_killed_while_it_writes_leaves_a_whole_one(file):
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(file.path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"going\n"
            writer.kill()
        found = file.load()
        assert found is not None
        assert found.rev >= 20
        assert os.listdir(file.path.parent) == ["journal"]
