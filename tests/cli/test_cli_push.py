"""`penstock push`: from files and pipes, under pressure, interrupted."""

import itertools
import json
import signal
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.packages import write_flow

from penstock.cli.push import LONGEST, Lines, progress_text, summary
from penstock.client import PushResult
from penstock.errors import UsageError


@pytest.fixture
def online(cluster, tmp_path):
    """A model that is online."""
    flow = write_flow(tmp_path)
    assert cluster("model", "add", flow, "--online").exit_code == 0
    return flow


def test_push_from_a_file_and_from_a_pipe(cluster, started, url, service, online, tmp_path):
    file = tmp_path / "records.ndjson"
    file.write_text('"a"\n"b"')
    assert cluster("push", "words/in", file).stderr == "2 records retained by words/in\n"
    command = started("push", "words/in", "--json", env={"PENSTOCK_URL": url}, stdin=-1)
    command.process.stdin.write(b'"c"\n')
    command.process.stdin.close()
    command.process.stdin = None
    code, out, _ = command.end()
    assert (code, json.loads(out)) == (
        0, {"accepted": 1, "lanes": {"0": 1}, "requests": 1, "resent": 0, "pending": 0, "through": 1},
    )  # fmt: skip
    assert service.records == ["a", "b", "c"]


def test_push_names_the_bad_line(cluster, online, tmp_path):
    file = tmp_path / "records.ndjson"
    file.write_text('"a"\nnot json\n')
    result = cluster("push", "words/in", file)
    assert result.exit_code == 1
    assert "line 2 is not JSON" in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "named"),
    [
        (["words/in", "/none.ndjson"], 2, "no such file"),
        (["words/in", "/"], 2, "directory"),
        (["words", "FILE"], 2, "not a stream's name"),
        (["words/in", "FILE", "--client", "c"], 2, "belong together"),
        (["words/none", "FILE"], 1, "no step"),
        (["none/in", "FILE"], 1, "no model"),
    ],
)
def test_push_errors(cluster, online, tmp_path, args, code, named):
    file = tmp_path / "records.ndjson"
    file.write_text("1\n")
    result = cluster("push", *[str(file) if arg == "FILE" else arg for arg in args])
    assert result.exit_code == code
    assert named in result.stderr


def test_push_gives_up_under_lasting_pressure(cluster, service, online, tmp_path):
    service.room = 0
    file = tmp_path / "records.ndjson"
    file.write_text("1\n")
    result = cluster("push", "words/in", file, "--deadline", "0.1")
    assert result.exit_code == 1
    assert "no room" in result.stderr


def until(condition, seconds=30):
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_large_file_goes_over_all_lanes(cluster, service, online, tmp_path):
    service.lanes, service.room = ["node-1"] * 3, 10**9
    file = tmp_path / "records.ndjson"
    lines = [json.dumps(f"{n:040}") for n in range(60_000)]
    file.write_text("\n".join(lines))
    result = cluster("push", "words/in", file, "--json")
    found = json.loads(result.stdout)
    assert (found["accepted"], found["through"]) == (60_000, 60_000)
    assert set(found["lanes"]) == {"0", "1", "2"}
    assert sorted(service.records) == [json.loads(line) for line in lines]


def test_in_order(cluster, service, online, tmp_path):
    service.lanes, service.room = ["node-1"] * 3, 10**9
    file = tmp_path / "records.ndjson"
    file.write_text("".join(f'"{n:040}"\n' for n in range(30_000)))
    assert cluster("push", "words/in", file, "--ordered").exit_code == 0
    assert service.records == [f"{n:040}" for n in range(30_000)]


def test_a_pipe_is_read_no_faster_than_the_cluster_takes(started, url, service, online):
    service.room = 0
    command = started("push", "words/in", "--deadline", "30", env={"PENSTOCK_URL": url}, stdin=-1)
    written = 0

    def write():
        nonlocal written
        piece = b'"%s"\n' % (b"x" * 1000) * 100
        try:
            for _ in range(400):  # 40 MB
                command.process.stdin.write(piece)
                written += len(piece)
        except BrokenPipeError:
            pass

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until(lambda: written > 0)
        before = -1
        while written != before:  # until it stands still
            before = written
            time.sleep(0.5)
        assert written < 25_000_000
        service.room = 10**9
        writer.join(60)
        assert written == 400 * 100 * 1003
    finally:
        command.process.stdin.close()
        command.process.stdin = None
        writer.join(10)
    code, _, err = command.end()
    assert code == 0, err
    assert "40,000 records retained" in err


def test_ctrl_c_says_what_is_acknowledged(started, url, service, online):
    command = started("push", "words/in", "--json", env={"PENSTOCK_URL": url}, stdin=-1)
    command.process.stdin.write(b'"a"\n"b"\n')
    until(lambda: len(service.records) == 2)
    command.process.stdin.write(b'"c"\n"d')
    until(lambda: len(service.records) == 3)
    command.interrupt()  # while it waits for more
    code, out, err = command.end()
    command.process.stdin.close()
    command.process.stdin = None
    assert code == 130, err
    found = json.loads(out)
    assert (found["accepted"], found["through"], found["pending"], found["interrupted"]) == (3, 3, 0, True)
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_under_pressure_ends_at_once_the_second_time(started, url, service, online, number):
    tried = threading.Event()
    refuse = service.push

    async def push(*args):
        tried.set()
        return await refuse(*args)

    service.room, service.push = 0, push
    command = started("push", "words/in", env={"PENSTOCK_URL": url}, stdin=-1)
    command.process.stdin.write(b'"a"\n"b"\n')
    assert tried.wait(30)
    start = time.monotonic()
    command.process.send_signal(number)
    time.sleep(0.3)
    command.process.send_signal(number)
    code, _, err = command.end()
    command.process.stdin.close()
    command.process.stdin = None
    assert code == 130, err
    assert time.monotonic() - start < 4
    assert "interrupted: 0 records retained" in err


def test_the_place_of_a_bad_line_and_what_is_retained(cluster, service, online, tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.cli.push.PIECE", 40)
    file = tmp_path / "records.ndjson"
    file.write_text('"a"\n' * 25 + "nope\n" + '"b"\n' * 100)
    result = cluster("push", "words/in", file, "--ordered")
    assert result.exit_code == 1
    assert "line 26 of the input" in result.stderr
    retained = len(service.records)
    assert 0 < retained <= 25
    assert f"{retained} records are retained, the first of the input" in result.stderr
    assert service.records == ["a"] * retained


lines = st.lists(st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"")), max_size=40).map(b"\n".join)


@given(data=lines, cuts=st.lists(st.integers(0, 1000), max_size=20), even=st.booleans())
def test_whole_lines_come_out_as_they_went_in(data, cuts, even):
    found = pieces_of(data, cuts, even)
    assert b"".join(found).rstrip() == data.rstrip()
    assert all(piece.endswith(b"\n") for piece in found)


@given(data=lines, one=st.lists(st.integers(0, 1000), max_size=20), other=st.lists(st.integers(0, 1000), max_size=20))
def test_even_pieces_do_not_depend_on_how_the_bytes_came(data, one, other):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penstock.cli.push.PIECE", 50)
        assert pieces_of(data, one, True) == pieces_of(data, other, True)


def pieces_of(data, cuts, even):
    """The pieces, the last one with a line end as well."""
    reader, found = Lines(even=even), []
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for start, end in itertools.pairwise(places):
        found += reader.feed(data[start:end])
    return found + [piece if piece.endswith(b"\n") else piece + b"\n" for piece in reader.last()]


def test_a_file_without_line_ends_does_not_fill_the_memory():
    reader = Lines()
    for _ in range(LONGEST // 2**20):
        assert list(reader.feed(b"x" * 2**20)) == []
    with pytest.raises(UsageError, match="a line is longer"):
        list(reader.feed(b"x"))


def test_words():
    some = PushResult(accepted=1200, lanes={0: 600, 1: 600}, requests=3, resent=1, through=1000, pending=20)
    assert progress_text(some, 99.6) == "1,200 records acknowledged, 100/s, 2 lanes, 1 sent again"
    assert summary("m/in", some, False) == "1,200 records retained by m/in (1 request sent again)"
    assert summary("m/in", some, True) == (
        "interrupted: 1,200 records retained by m/in (1 request sent again), the first 1,000 of the input without a gap"
        "; 20 more may have been taken"
    )
