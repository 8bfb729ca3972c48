from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from penstock import codec
from penstock.connectors import collect, null, stdout
from penstock.connectors.stdout_lines import whole_lines
from penstock.errors import ConnectorError, UsageError
from penstock.flow.batch import Keyed


def test_stdout_prints_one_line_per_record(ctx, capsysbinary):
    stdout().open(ctx).write(["text", Keyed("a", 1), 2.5])
    stdout("json").open(ctx).write(["text"])
    assert capsysbinary.readouterr().out == b'text\n{"key":"a","value":1}\n2.5\n"text"\n'
    with pytest.raises(UsageError, match="'text' or 'json'"):
        stdout("xml")


def test_lines_of_several_processes_are_not_mixed(ctx):
    program = (
        "import sys; from penstock.connectors import stdout; from penstock.flow.connector import ConnectorContext\n"
        "w = stdout().open(ConnectorContext('f', 's'))\n"
        "for i in range(50): w.write([sys.argv[1] * 100] * 100)"
    )
    read, write = os.pipe()
    running = [subprocess.Popen([sys.executable, "-c", program, name], stdout=write) for name in "ab"]
    os.close(write)
    with os.fdopen(read) as pipe:
        lines = pipe.read().splitlines()
    assert [process.wait(30) for process in running] == [0, 0]
    assert sorted(set(lines)) == ["a" * 100, "b" * 100]
    assert len(lines) == 10_000


def test_pieces_end_at_line_ends():
    data = b"".join(b"%d\n" % n for n in range(5000)) + b"y" * 10_000 + b"\nz\n"
    pieces = list(whole_lines(data))
    assert b"".join(pieces) == data
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert sum(len(piece) > 4096 for piece in pieces) == 1


def test_a_reader_that_went_away_is_an_error():
    program = (
        "from penstock.connectors import stdout; from penstock.flow.connector import ConnectorContext\n"
        "from penstock.errors import ConnectorError; import os, sys\n"
        "try:\n    for i in range(1000): stdout().open(ConnectorContext('f', 's')).write(['x' * 100] * 100)\n"
        "except ConnectorError as e: print(e, file=sys.stderr); sys.stderr.flush(); os._exit(3)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert b"closed by its reader" in process.stderr.read()
        assert process.wait(30) == 3


def test_collect_hands_records_over(ctx):
    got = []
    ctx.collect = lambda step, records: got.append((step, records))
    writer = collect(limit=3).open(ctx)
    writer.write([1, Keyed("a", 2)])
    assert got == [("step", [1, Keyed("a", 2)])]
    with pytest.raises(ConnectorError, match="more than 3 records"):
        writer.write([3, 4])


def test_collect_waits_for_the_checkpoint(ctx):
    got = []
    ctx = replace(ctx, checkpointed=True, collect=lambda step, records: got.extend(records))
    writer = collect().open(ctx)
    writer.write([Keyed("a", 1)])
    writer.prepare(1)
    writer.write([2])
    pending = codec.loads(codec.dumps(writer.prepare(2)))
    assert got == []
    writer.commit(pending)
    writer.commit(pending)
    assert got == [Keyed("a", 1), 2]
    writer.write([3])
    writer.close()
    assert got == [Keyed("a", 1), 2, 3]
    got.clear()
    collect().open(ctx).recover([pending])
    assert got == [Keyed("a", 1), 2]


def test_collect_needs_a_collector(ctx):
    with pytest.raises(ConnectorError, match="nobody collects"):
        collect().open(ctx)


def test_null_forgets(ctx):
    writer = null().open(ctx)
    writer.write([1, 2])
    assert writer.written == 2
