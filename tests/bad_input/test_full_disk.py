"""A sink or a checkpoint that can write no more: an error, and nothing half-written is shown."""

import os
import resource
import subprocess

import pytest

MANY = "ps.iterable(range(200_000))"
LIMIT = 300_000
"""Bytes that a file may have."""


def limited():
    """In the child: no file may grow beyond the limit. Python answers with an error instead of a signal."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


@pytest.mark.parametrize("options", [[], ["--checkpoint", "kept"]], ids=["plain", "checkpoint"])
def test_a_sink_at_the_limit(run, write, folder, options):
    code, _, err = run(write(MANY, sink="ps.ndjson('results.ndjson')"), *options, preexec_fn=limited)
    assert code == 1
    assert "the file is too large" in err
    assert "make room" in err
    shown = [path for path in folder.rglob("*.ndjson") if path.is_file() and path.name[0] != "."]
    assert shown == []


def test_a_checkpoint_at_the_limit(run, write):
    steps = ".key_by('key', lambda n: n).count('count').filter('none', lambda r: False)"
    code, _, err = run(write(MANY, steps), "--checkpoint", "kept", preexec_fn=limited)
    assert code == 1
    assert "cannot be written" in err
    assert "free space or choose another --checkpoint" in err


@pytest.fixture
def small_disk(folder):
    """A file system of 256 kB, where this user may mount one."""
    place = folder / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", place], capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_full(run, write, small_disk):
    code, _, err = run(write(MANY, sink="ps.ndjson('disk/results.ndjson')"))
    assert code == 1
    assert "the disk is full" in err
    assert "make room" in err
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("sink", ["ps.stdout()", "ps.collect()"])
def test_standard_output_on_a_full_disk(run, write, started, sink):
    with open("/dev/full", "w") as full:
        command = started("run", write("ps.iterable([1, 2])", sink=sink), stdout=full)
        code, _, err = command.end()
    assert code == 1
    assert "No space left on device" in err
    assert "Traceback" not in err
    assert "Exception ignored" not in err


def test_a_device_is_not_replaced_by_a_file(run, write, folder):
    os.mkfifo(folder / "pipe")
    code, _, err = run(write("ps.iterable([1])", sink="ps.files('pipe')"))
    assert code == 1
    assert "'pipe' is not a plain file" in err
    assert (folder / "pipe").is_fifo()
