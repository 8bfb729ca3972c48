"""Durable checkpoints on a file store."""

import os
from pathlib import Path

import pytest

from penstock.errors import CheckpointError
from penstock.worker import store as store_module
from penstock.worker.store import CheckpointStore, TakenOver

MANIFEST = {"steps": [["source"]], "parts": {"0.0": 7}}


def complete(store: CheckpointStore, number: int) -> None:
    store.write_part(number, "0.0", b"state %d" % number)
    store.write_manifest(number, MANIFEST)


def test_only_a_checkpoint_with_a_manifest_exists(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), "flow")
    assert store.latest() is None
    assert store.next_number() == 1
    complete(store, 1)
    store.write_part(2, "0.0", b"never completed")
    assert store.latest() == (1, MANIFEST)
    assert store.next_number() == 3
    assert store.read_part(1, "0.0") == b"state 1"


def test_old_and_incomplete_ones_are_pruned(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), "flow")
    for number in (1, 3, 4):
        complete(store, number)
    store.write_part(2, "0.0", b"")
    store.prune(2)
    assert sorted(os.listdir(tmp_path / "flow")) == ["chk-00000003", "chk-00000004"]


def test_a_damaged_part_is_found(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), "flow")
    complete(store, 1)
    path = tmp_path / "flow" / "chk-00000001" / "0.0.part"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        store.read_part(1, "0.0")


def test_another_file_store_by_url() -> None:
    store = CheckpointStore("memory://penstock-test", "flow")
    complete(store, 5)
    assert store.latest() == (5, MANIFEST)
    store.prune(0 + 1)


def test_bad_places_are_explained(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file store"):
        CheckpointStore("nosuchscheme://x", "flow")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError):
        CheckpointStore(str(tmp_path / "file"), "flow").write_part(1, "0.0", b"")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"flow": "f"}', "\x00\xff"])
def test_a_damaged_manifest_is_told_with_the_remedy(tmp_path: Path, text: str) -> None:
    store = CheckpointStore(str(tmp_path), "flow")
    complete(store, 1)
    complete(store, 2)
    (tmp_path / "flow" / "chk-00000002" / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"cannot be read(?s:.*)remove .*chk-00000002 to go on"):
        store.latest()
    store.discard(2)
    assert store.latest() == (1, MANIFEST)


def test_one_run_at_a_time_works_in_a_directory(tmp_path: Path) -> None:
    first, second = CheckpointStore(str(tmp_path), "flow"), CheckpointStore(str(tmp_path), "flow")
    first.claim()
    with pytest.raises(CheckpointError, match="in use by another run"):
        second.claim()
    other = CheckpointStore(str(tmp_path), "another-flow")
    other.claim()
    other.close()
    first.close()
    second.claim()
    second.close()


def test_a_run_waits_for_the_workers_of_a_killed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed, worker, run = (CheckpointStore(str(tmp_path), "flow") for _ in range(3))
    killed.claim()
    worker.join()
    killed.close()
    monkeypatch.setattr(store_module, "ORPHAN_DEADLINE", 0.1)
    with pytest.raises(CheckpointError, match="workers of an earlier run"):
        run.claim()
    run.close()
    worker.close()
    run.claim()
    worker.join()  # now it is one of this run
    worker.close()
    run.close()


def test_without_locks_the_later_run_wins_and_the_earlier_one_finds_out() -> None:
    first, second = (CheckpointStore("memory://penstock-two", "flow") for _ in range(2))
    first.claim()
    complete(first, 1)
    second.claim()
    with pytest.raises(TakenOver, match="another run"):
        complete(first, 2)
    complete(second, 3)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    store = CheckpointStore(str(tmp_path), "flow")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        store.write_part(1, "0.0", b"x")
    assert os.listdir(tmp_path / "flow" / "chk-00000001") == []


def test_where_no_run_is_at_work_a_worker_writes_nothing(tmp_path: Path) -> None:
    CheckpointStore(str(tmp_path / "none"), "flow").join()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("url", ["{}", "memory://penstock-parts{}"])
def test_the_parts_that_are_there(tmp_path: Path, url: str) -> None:
    store = CheckpointStore(url.format(tmp_path), "flow")
    assert store.parts(1) == {}
    sizes = {
        name: store.write_part(1, name, b"x" * length) for name, length in (("0.0", 0), ("0.1", 7), ("10.11", 900))
    }
    store.write_part(2, "0.0", b"of another")
    assert store.parts(1) == sizes
    store.write_manifest(1, MANIFEST)
    assert store.parts(1) == sizes
