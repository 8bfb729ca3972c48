from __future__ import annotations

import gzip
import os
from dataclasses import replace

import pytest
from tests.connectors.conftest import read_all

from penstock.connectors import files
from penstock.connectors.block_reader import BLOCK_BYTES
from penstock.errors import ConnectorError, UsageError
from penstock.flow.connector import EndOfInput


def test_lines_without_their_ends(tmp_path, ctx):
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\ntwo\n\nvier \u2028 ä\nlast".encode())
    assert read_all(files(path).open(str(path), None, ctx)) == ["one", "two", "", "vier \u2028 ä", "last"]


def test_byte_order_mark_is_not_part_of_the_text(tmp_path, ctx):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    assert read_all(files(path).open(str(path), None, ctx)) == ["one", "two"]


def test_a_pattern_gives_one_partition_per_file_and_a_directory_its_visible_files(tmp_path):
    for name in ("b.txt", "a.txt", "c.csv", ".hidden.txt"):
        (tmp_path / name).write_text("x\n")
    assert [os.path.basename(p) for p in files(tmp_path / "*.txt").partitions()] == ["a.txt", "b.txt"]
    assert [os.path.basename(p) for p in files(tmp_path).partitions()] == ["a.txt", "b.txt", "c.csv"]
    assert len(files([tmp_path / "a.txt", tmp_path / "a*"]).partitions()) == 1


@pytest.mark.parametrize("suffix", ["txt", "txt.gz"])
@pytest.mark.parametrize("limit", [1, 7, 1024])
def test_every_offset_continues_exactly(tmp_path, ctx, suffix, limit):
    lines = [f"{'ä' * (i % 50)} line {i}\r" if i % 3 else f"line {i}" for i in range(BLOCK_BYTES // 20)]
    if limit == 1:
        lines = lines[:300]
    lines.append("the end")
    path = tmp_path / f"a.{suffix}"
    opener = gzip.open if suffix.endswith("gz") else open
    with opener(path, "wb") as out:
        out.write("\n".join(lines).encode())
    expected = [line.rstrip("\r") for line in lines]
    source = files(path)
    reader = source.open(str(path), None, ctx)
    seen = 0
    rounds = 0
    while seen < len(expected):
        seen += len(reader.read(limit))
        rounds += 1
        if rounds % max(1, len(expected) // limit // 15) == 0:
            offset = reader.offset()
            assert offset["line"] == seen + 1 or seen == len(expected)
            resumed = source.open(str(path), offset, ctx)
            assert read_all(resumed, limit=5000) == expected[seen:]
    reader.close()


def test_a_wrong_encoding_names_file_line_and_byte(tmp_path, ctx, skipped):
    path = tmp_path / "latin.txt"
    path.write_bytes("good\nsch\u00f6n\nlast\n".encode("latin-1"))
    with pytest.raises(ConnectorError, match=r"latin\.txt', line 2, byte 8: not utf-8 text"):
        read_all(files(path).open(str(path), None, ctx))
    ctx.on_bad_record = skipped
    assert read_all(files(path).open(str(path), None, ctx)) == ["good", "last"]
    assert skipped.raw == ["sch\u00f6n".encode("latin-1")]
    assert read_all(files(path, encoding="latin-1").open(str(path), None, ctx)) == ["good", "schön", "last"]


def test_a_bad_line_is_reported_in_its_turn_and_once_over_a_restart(tmp_path, ctx, skipped):
    path = tmp_path / "a.txt"
    path.write_bytes(b"1\n2\n\xff\n4\n\xfe\n6\n")
    ctx.on_bad_record = skipped
    source = files(path)
    reader = source.open(str(path), None, ctx)
    assert reader.read(2) == ["1", "2"]
    assert skipped.raw == []
    assert reader.read(2) == ["4"]
    assert skipped.raw == [b"\xff"]
    offset = reader.offset()
    reader.close()
    assert read_all(source.open(str(path), offset, ctx)) == ["6"]
    assert skipped.raw == [b"\xff", b"\xfe"]


def test_only_bad_lines_ask_to_be_read_again(tmp_path, ctx, skipped, clock):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff\n\xff\nx\n")
    ctx.on_bad_record = skipped
    reader = files(path).open(str(path), None, ctx)
    assert reader.read(2) == []
    assert reader.next_at() <= clock.monotonic()
    assert read_all(reader) == ["x"]


def test_a_missing_file_names_what_looks_like_it(tmp_path):
    (tmp_path / "words.txt").write_text("x")
    with pytest.raises(ConnectorError, match=r"did you mean .*words\.txt"):
        files(tmp_path / "word.txt").partitions()
    with pytest.raises(ConnectorError, match="does not exist"):
        files(tmp_path / "none" / "word.txt").partitions()
    with pytest.raises(ConnectorError, match="no file matches"):
        files(tmp_path / "*.csv").partitions()


def test_unreadable_things_are_named(tmp_path, ctx):
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(b"line\n" * 100_000)[:-20])
    with pytest.raises(ConnectorError, match=r"broken\.gz' is not a complete gzip file"):
        read_all(files(broken).open(str(broken), None, ctx))
    plain = tmp_path / "plain.gz"
    plain.write_bytes(b"not compressed\n")
    with pytest.raises(ConnectorError, match="is not a complete gzip file"):
        read_all(files(plain).open(str(plain), None, ctx))
    with pytest.raises(ConnectorError, match="is a directory"):
        files(tmp_path).open(str(tmp_path), None, ctx)


def test_a_file_that_became_shorter_than_the_checkpoint_is_an_error(tmp_path, ctx):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    with pytest.raises(ConnectorError, match="ends at byte 8, before the position 100"):
        files(path).open(str(path), {"byte": 100, "line": 9}, ctx)


def test_impossible_options():
    with pytest.raises(UsageError, match="cannot be followed"):
        files("a.gz", follow=True)
    with pytest.raises(UsageError, match="no text encoding"):
        files("a", encoding="utf-nine")
    with pytest.raises(UsageError, match="iconv"):
        files("a", encoding="utf-16")
    with pytest.raises(UsageError, match="expected"):
        files([])


def test_follow_gives_a_line_only_when_it_is_complete(tmp_path, ctx, clock):
    path = tmp_path / "log"
    path.write_text("one\ntw")
    reader = files(path, follow=True).open(str(path), None, ctx)
    assert reader.read(10) == ["one"]
    assert reader.read(10) == []
    assert clock.monotonic() < reader.next_at() < clock.monotonic() + 1
    with path.open("a") as out:
        out.write("o\nthree\n")
    assert reader.read(10) == ["two", "three"]
    reader.close()


def test_follow_survives_rotation_and_truncation(tmp_path, ctx):
    path = tmp_path / "log"
    path.write_text("one\nhalf")
    reader = files(path, follow=True).open(str(path), None, ctx)
    assert reader.read(10) == ["one"]
    path.rename(tmp_path / "log.1")
    assert reader.read(10) == []
    path.write_text("new\n")
    got = [line for _ in range(6) for line in reader.read(10)]
    assert got == ["half", "new"]
    path.write_text("x\n")
    got = [line for _ in range(6) for line in reader.read(10)]
    assert got == ["x"]
    assert reader.offset()["byte"] == 2
    reader.close()


def test_follow_finishes_a_file_that_was_rotated_while_the_flow_was_down(tmp_path, ctx):
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    source = files(path, follow=True)
    reader = source.open(str(path), None, ctx)
    assert reader.read(1) == ["one"]
    offset = reader.offset()
    reader.close()
    path.rename(tmp_path / "log.1")
    path.write_text("three\n")
    reader = source.open(str(path), offset, ctx)
    assert [line for _ in range(6) for line in reader.read(10)] == ["two", "three"]
    reader.close()


def test_a_line_without_end_does_not_fill_the_memory(tmp_path, ctx, monkeypatch):
    monkeypatch.setattr("penstock.connectors.block_reader.RECORD_BYTES", 2**20)
    path = tmp_path / "binary"
    path.write_bytes(bytes(3 * 2**20))
    reader = files(path).open(str(path), None, ctx)
    with pytest.raises(ConnectorError, match="longer than"):
        reader.read(10)
    reader.close()


def test_empty_file_and_progress(tmp_path, ctx):
    path = tmp_path / "a"
    path.write_text("")
    reader = files(path).open(str(path), None, ctx)
    assert reader.progress() == 1.0
    with pytest.raises(EndOfInput):
        reader.read(1)
    reader.close()


def test_writes_what_it_reads(tmp_path, ctx):
    out = tmp_path / "out.txt"
    writer = files(out).open(ctx)
    writer.write(["one", "two\nlines", {"a": 1}, 3])
    assert not out.exists()
    writer.close()
    assert out.read_text() == 'one\ntwo\\nlines\n{"a":1}\n3\n'
    assert files(out).open(ctx=replace(ctx)) is not None
