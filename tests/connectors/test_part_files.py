from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from tests.connectors.conftest import read_all

from penstock.connectors import files, ndjson
from penstock.connectors.part_files import PartFiles
from penstock.errors import ConnectorError
from penstock.flow.connector import ConnectorContext


@pytest.fixture
def checkpointed(ctx) -> ConnectorContext:
    return replace(ctx, checkpointed=True)


def visible(directory) -> list[str]:
    return sorted(name for name in os.listdir(directory) if not name.startswith("."))


def hidden(directory) -> list[str]:
    return sorted(name for name in os.listdir(directory) if name.startswith("."))


def numbers(directory, ctx) -> list[int]:
    """What a reader of the directory finds."""
    if not visible(directory):
        return []
    source = ndjson(directory)
    return sorted(n for part in source.partitions() for n in read_all(source.open(part, None, ctx)))


def test_one_executor_without_checkpoints_ends_as_that_one_file(tmp_path, ctx):
    path = tmp_path / "out.ndjson"
    path.write_text("of an earlier run\n")
    writer = ndjson(path).open(ctx)
    writer.write([1, 2])
    writer.flush()
    assert path.read_text() == "of an earlier run\n"
    writer.write([3])
    writer.close()
    assert path.read_text() == "1\n2\n3\n"
    assert hidden(tmp_path) == []


def test_no_records_leave_an_empty_file(tmp_path, ctx):
    ndjson(tmp_path / "out.ndjson").open(ctx).close()
    assert (tmp_path / "out.ndjson").read_bytes() == b""


def test_a_failed_run_leaves_nothing(tmp_path, ctx):
    writer = ndjson(tmp_path / "out.ndjson").open(ctx)
    writer.write(list(range(100_000)))
    assert hidden(tmp_path) == [".out.ndjson.tmp"]
    writer.abort()
    assert os.listdir(tmp_path) == []


def test_several_executors_write_parts_of_their_own(tmp_path, ctx):
    path = tmp_path / "out.ndjson"
    writers = [ndjson(path).open(replace(ctx, index=i, executors=2)) for i in range(2)]
    for i, writer in enumerate(writers):
        writer.write([i])
        writer.close()
    assert visible(path) == ["part-00000-00000001.ndjson", "part-00001-00000001.ndjson"]
    assert numbers(path, ctx) == [0, 1]


def test_parts_become_visible_now_and_then_without_checkpoints(tmp_path, ctx, clock):
    out = tmp_path / "out"
    writer = ndjson(f"{out}/", roll=5).open(ctx)
    writer.write([1])
    writer.flush()
    assert visible(out) == []
    clock.advance(5)
    writer.flush()
    assert numbers(out, ctx) == [1]
    writer.write([2])
    writer.close()
    assert numbers(out, ctx) == [1, 2]


def test_a_fresh_run_replaces_the_output_of_the_one_before(tmp_path, ctx):
    out = tmp_path / "out"
    for executors in (3, 1):
        for index in range(executors):
            writer = ndjson(f"{out}/").open(replace(ctx, index=index, executors=executors))
            writer.write([executors])
            writer.close()
    (out / "notes.txt").write_text("not ours")
    assert visible(out) == ["notes.txt", "part-00000-00000001.ndjson"]


@pytest.mark.parametrize(
    ("sink", "path", "name"),
    [
        (ndjson, "ticks/", "part-00000-00000001.ndjson"),
        (ndjson, "ticks.v2", "part-00000-00000001.ndjson"),
        (ndjson, "ticks.ndjson.gz", "part-00000-00000001.ndjson.gz"),
        (files, "ticks.log/", "part-00000-00000001.txt"),
    ],
)
def test_the_names_of_parts_say_what_is_in_them(tmp_path, checkpointed, sink, path, name):
    writer = sink(f"{tmp_path}/{path}").open(checkpointed)
    writer.write([1])
    writer.commit(writer.prepare(1))
    writer.abort()
    assert visible(tmp_path / path) == [name]


def test_a_compressed_path_is_written_as_it_is_read(tmp_path, ctx):
    path = tmp_path / "out.ndjson.gz"
    writer = ndjson(path).open(ctx)
    for _ in range(2):  # more than one spill
        writer.write(list(range(100_000)))
    writer.close()
    assert path.read_bytes()[:2] == b"\x1f\x8b"
    assert read_all(ndjson(path).open(str(path), None, ctx), 300_000) == [*range(100_000)] * 2


def test_prepared_records_show_at_commit_once(tmp_path, checkpointed):
    out = tmp_path / "out.ndjson"
    writer = ndjson(out).open(checkpointed)
    writer.write([1, 2])
    pending = writer.prepare(1)
    writer.write([3])
    assert visible(out) == []
    writer.commit(pending)
    writer.commit(pending)
    assert numbers(out, checkpointed) == [1, 2]
    assert writer.prepare(2)["parts"] == ["part-00000-00000002.ndjson"]
    writer.abort()


def test_a_checkpoint_that_was_given_up_loses_nothing(tmp_path, checkpointed):
    out = tmp_path / "out.ndjson"
    writer = ndjson(out).open(checkpointed)
    writer.write([1])
    writer.prepare(1)
    writer.write([2])
    pending = writer.prepare(2)
    writer.abort()
    restored = ndjson(out).open(checkpointed)
    restored.recover([pending])
    assert numbers(out, checkpointed) == [1, 2]
    restored.close()


def test_recovery_removes_what_is_later_than_the_checkpoint(tmp_path, checkpointed):
    out = tmp_path / "out.ndjson"
    writer = ndjson(out).open(checkpointed)
    writer.write([1])
    first = writer.prepare(1)
    writer.commit(first)
    writer.write([2])
    second = writer.prepare(2)
    writer.commit(second)
    writer.write([3])
    writer.prepare(3)
    writer.write(list(range(100_000)))
    restored = ndjson(out).open(checkpointed)
    restored.recover([first])
    assert numbers(out, checkpointed) == [1]
    assert hidden(out) == []
    writer.abort()
    restored.close()


def test_fewer_executors_complete_the_parts_of_the_others(tmp_path, checkpointed):
    out = tmp_path / "out.ndjson"
    pendings = []
    for index in range(3):
        writer = ndjson(out).open(replace(checkpointed, index=index, executors=3))
        writer.write([index])
        pendings.append(writer.prepare(1))
        writer.write([99])
        writer.prepare(2)
        writer.abort()
    one = ndjson(out).open(replace(checkpointed, executors=2))
    other = ndjson(out).open(replace(checkpointed, index=1, executors=2))
    one.recover([pendings[0], pendings[2]])
    other.recover([pendings[1]])
    assert numbers(out, checkpointed) == [0, 1, 2]
    assert hidden(out) == []
    one.close()
    other.close()


def test_parts_that_somebody_removed_are_an_error(tmp_path, checkpointed):
    out = tmp_path / "out.ndjson"
    writer = ndjson(out).open(checkpointed)
    writer.write([1])
    pending = writer.prepare(1)
    writer.abort()
    os.unlink(out / ".part-00000-00000001.ndjson.ready")
    with pytest.raises(ConnectorError, match="neither it nor its hidden form exists"):
        ndjson(out).open(checkpointed).recover([pending])


def test_a_file_where_a_directory_is_needed(tmp_path, checkpointed):
    (tmp_path / "out.ndjson").write_text("of an earlier run")
    with pytest.raises(ConnectorError, match="is a file, but a run with checkpoints"):
        ndjson(tmp_path / "out.ndjson").open(checkpointed)


def test_a_full_disk_is_named_and_nothing_is_shown(tmp_path, ctx, monkeypatch):
    writer = PartFiles(str(tmp_path / "out.ndjson"), ctx, lambda records: b"x" * 2**20)
    monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(ConnectorError, match="the disk is full") as caught:
        writer.write([1])
    assert "make room" in str(caught.value)
    writer.abort()
    assert os.listdir(tmp_path) == []


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if sys.platform != "linux" or mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("a small disk needs Linux and root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_really_full(tiny_disk, checkpointed):
    out = tiny_disk / "out.ndjson"
    writer = ndjson(out).open(checkpointed)
    writer.write(list(range(1000)))
    writer.commit(writer.prepare(1))
    with pytest.raises(ConnectorError, match="the disk is full"):
        writer.write(["x" * 10_000] * 1000)
    writer.abort()
    assert numbers(out, checkpointed) == list(range(1000))
    assert hidden(out) == []


FULL_DISK = """
import sys, resource, signal
from penstock.connectors import ndjson
from penstock.errors import ConnectorError
from penstock.flow.connector import ConnectorContext
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
writer = ndjson(sys.argv[1] + "/").open(ConnectorContext("f", "s", checkpointed=True))
writer.write(["first"])
writer.commit(writer.prepare(1))
try:
    for n in range(100):
        writer.write(["x" * 10_000] * 10)
except ConnectorError as error:
    writer.abort()
    print(error)
"""


def test_a_real_limit_of_the_file_system_leaves_what_was_committed(tmp_path, ctx):
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(out)], capture_output=True, text=True, timeout=60)
    assert "the file is too large" in done.stdout, done.stderr
    assert visible(out) == ["part-00000-00000001.ndjson"]
    assert hidden(out) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 500_000


KILLED = """
import json, os, sys
from penstock.connectors import ndjson
from penstock.flow.connector import ConnectorContext

out, log, start, stop = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
writer = ndjson(out + "/").open(ConnectorContext("f", "s", checkpointed=True))
state = json.load(open(log)) if os.path.exists(log) else None
if state:
    writer.recover([state["pending"]])
n, checkpoint = (state["n"], state["checkpoint"]) if state else (0, 0)
calls = 0
real = {name: getattr(os, name) for name in ("rename", "fsync", "write", "unlink")}

def counted(name):
    def call(*args):
        global calls
        calls += 1
        if calls == start and stop == "before":
            os.kill(os.getpid(), 9)
        result = real[name](*args)
        if calls == start and stop == "after":
            os.kill(os.getpid(), 9)
        return result
    return call

for name in real:
    setattr(os, name, counted(name))
while n < 40:
    writer.write(list(range(n, n + 5)))
    n += 5
    checkpoint += 1
    pending = writer.prepare(checkpoint)
    with open(log + ".new", "w") as f:  # the durable checkpoint: position and pending together
        json.dump({"n": n, "checkpoint": checkpoint, "pending": pending}, f)
    real["rename"](log + ".new", log)
    writer.commit(pending)
writer.close()
"""


@pytest.mark.faults
def test_a_kill_at_any_system_call_neither_loses_nor_doubles_a_record(tmp_path, ctx):
    kills = 0
    chance = random.Random(7)
    for call in chance.sample(range(1, 50), 14):
        out, log = tmp_path / f"out{call}", str(tmp_path / f"log{call}")
        stop = chance.choice(["before", "after"])
        for attempt in (call, 3, 10**6):  # killed twice, then left alone
            done = subprocess.run(
                [sys.executable, "-c", KILLED, str(out), log, str(attempt), stop], capture_output=True, timeout=60
            )
            assert done.returncode in (0, -signal.SIGKILL), done.stderr
            kills += done.returncode == -signal.SIGKILL
            shown = numbers(out, ctx) if out.exists() else []
            assert shown == list(range(len(shown))), "what is visible is always whole"
        assert numbers(out, ctx) == list(range(40))
        assert hidden(out) == []
    assert kills >= 20
