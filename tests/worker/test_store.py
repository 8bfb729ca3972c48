"""Durable checkpoints on a file store."""

import os
from pathlib import Path

import pytest

from penstock.errors import CheckpointError
from penstock.worker.store import CheckpointStore


def complete(store: CheckpointStore, number: int) -> None:
    store.write_part(number, "0.0", b"state %d" % number)
    store.write_manifest(number, {"parts": ["0.0"]})


def test_only_a_checkpoint_with_a_manifest_exists(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), "flow")
    assert store.latest() is None
    assert store.next_number() == 1
    complete(store, 1)
    store.write_part(2, "0.0", b"never completed")
    assert store.latest() == (1, {"parts": ["0.0"]})
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
    assert store.latest() == (5, {"parts": ["0.0"]})
    store.prune(0 + 1)


def test_bad_places_are_explained(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file store"):
        CheckpointStore("nosuchscheme://x", "flow")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError):
        CheckpointStore(str(tmp_path / "file"), "flow").write_part(1, "0.0", b"")
