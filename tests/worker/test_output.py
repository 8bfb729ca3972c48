"""What models print and log becomes messages that say which model it was."""

import asyncio
import os
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.cluster.launcher.process import ProcessLauncher, ProcessWorker
from penstock.cluster.launcher.protocol import WorkerSpec
from penstock.worker.control import encode_message
from penstock.worker.messages import (
    Connect,
    Connected,
    Epoch,
    ExecutorId,
    Failed,
    Load,
    Loaded,
    Log,
    Message,
    Running,
    Start,
    Stop,
    Stopped,
)
from penstock.worker.output import LINES_PER_SECOND, LONGEST_LINE, Capture, _Stream


class Hand:
    """A clock that is turned by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_model_has_so_many_lines_per_second():
    clock = Hand()
    capture = Capture(clock)
    for number in range(LINES_PER_SECOND + 50):
        capture.write("noisy", "info", str(number))
    capture.write("quiet", "info", "one")
    lines = capture.taken()
    assert [line.text for line in lines if line.model == "noisy"] == [str(n) for n in range(LINES_PER_SECOND)]
    assert [line.text for line in lines if line.model == "quiet"] == ["one"]
    clock.now += 1.5
    [told] = capture.taken()
    assert (told.model, told.level) == ("noisy", "warning")
    assert told.text.startswith("50 lines are left out here")
    capture.write("noisy", "info", "again")
    assert [line.text for line in capture.taken()] == ["again"]


def test_what_was_dropped_is_said_at_the_end():
    capture = Capture(Hand())
    for number in range(LINES_PER_SECOND + 3):
        capture.write("m", "info", str(number))
    lines = capture.ended("m")
    assert len(lines) == LINES_PER_SECOND + 1
    assert lines[-1].text.startswith("3 lines are left out")
    assert capture.ended("m") == []


def test_the_queue_is_bounded():
    capture = Capture(Hand())
    for model in range(50):
        for number in range(LINES_PER_SECOND):
            capture.write(f"m{model}", "info", str(number))
    assert len(capture.taken()) == 2000


def test_long_lines_are_cut():
    capture = Capture(Hand())
    capture.model = "m"
    stream = _Stream(capture, sys.__stdout__, "info")
    for _ in range(10):
        stream.write("x" * LONGEST_LINE)
    stream.write("\nnext\r\nrest")
    capture.model = "other"
    stream.write("mine\n")
    texts = [(line.model, line.text) for line in capture.taken()]
    assert texts == [("m", "x" * LONGEST_LINE + "…"), ("m", "next"), ("m", "rest"), ("other", "mine")]


def test_lines_of_several_threads_do_not_mix():
    capture = Capture(Hand())
    stream = _Stream(capture, sys.__stdout__, "info")
    barrier = threading.Barrier(4)

    def write(name: str) -> None:
        barrier.wait()
        for _ in range(20):
            for letter in name * 5:
                stream.write(letter)
            stream.write("\n")

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread._penstock_model = "m"  # type: ignore[attr-defined]
        thread.start()
    for thread in threads:
        thread.join()
    texts = [line.text for line in capture.taken()]
    assert sorted(texts) == sorted(letter * 5 for letter in "abcd" for _ in range(20))


TALKATIVE = """
import logging, sys, threading, time
import penstock as ps
logging.basicConfig(level="DEBUG")  # too late: the worker has set up logging
print("{name} is imported")
logging.getLogger("mine").info("{name} logs")
logging.getLogger("mine").debug("{name} does not say this")
print("{name} is worried", file=sys.stderr)
print("no end of line", end="")

def background():
    while True:
        print("{name} thread")
        time.sleep(0.05)

threading.Thread(target=background, daemon=True).start()

def show(n):
    print(f"{name} record {{n}}")
    return n

flow = ps.Flow("{name}")
flow.source("n", ps.sequence(rate=50)).map("show", show).sink("out", ps.null())
"""


class Session:
    """A worker that captures, and what it says."""

    def __init__(self, worker: ProcessWorker) -> None:
        self.worker = worker
        self.said: list[Message] = []
        self.changed = asyncio.Event()

    async def listen(self) -> None:
        async for message in self.worker.messages():
            self.said.append(message)
            self.changed.set()

    async def until(self, check: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not check():
                self.changed.clear()
                await self.changed.wait()

    async def load(self, target: Path, number: int) -> None:
        name = target.stem
        await self.worker.send(Load(name, str(target), number, Epoch(0, 1), [ExecutorId(0, 0)], {0: 1}))
        await self.until(lambda: self.kinds(name) & {"Loaded", "Failed"})

    async def start(self, name: str) -> None:
        await self.worker.send(Connect(name, {"0.0": self.worker.endpoint}, {"0.0": Epoch(0, 1)}))
        await self.until(lambda: Connected(name) in self.said)
        await self.worker.send(Start(name))
        await self.until(lambda: Running(name) in self.said)

    def kinds(self, name: str) -> set[str]:
        return {type(message).__name__ for message in self.said if getattr(message, "model", "") == name}

    def logs(self, name: str) -> list[tuple[str, str]]:
        return [(m.level, m.text) for m in self.said if isinstance(m, Log) and m.model == name]


def in_worker(work: Callable[[Session, Path], object], capture: bool = True) -> str:
    """Do something with a worker; its own log file then."""

    async def main(data_dir: Path) -> str:
        log_file = data_dir / "log"
        spec = WorkerSpec(
            name="w", python=sys.executable, data_dir=str(data_dir), log_file=str(log_file), capture_output=capture
        )
        worker = await ProcessLauncher().start(spec)
        session = Session(worker)
        listening = asyncio.create_task(session.listen())
        try:
            await work(session, log_file)  # type: ignore[misc]
        finally:
            await worker.stop()
            await listening
        return log_file.read_text()

    with tempfile.TemporaryDirectory() as data_dir:
        return asyncio.run(main(Path(data_dir)))


@pytest.fixture
def talkative(tmp_path):
    paths = []
    for name in ("first", "second"):
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(TALKATIVE.format(name=name)))
        paths.append(path)
    return paths


def test_lines_belong_to_their_model(talkative):
    async def work(session: Session, log_file: Path) -> None:
        for number, path in enumerate(talkative):
            await session.load(path, number)
            await session.start(path.stem)
        for name in ("first", "second"):
            await session.until(lambda name=name: ("info", f"{name} record 3") in session.logs(name))
            await session.until(lambda name=name: ("info", f"{name} thread") in session.logs(name))
        before = [type(m).__name__ for m in session.said]
        assert before.index("Log") < before.index("Loaded"), "what it says while it is imported comes first"
        await session.worker.send(Stop("first"))
        await session.until(lambda: Stopped("first") in session.said)
        for name in ("first", "second"):
            logs = session.logs(name)
            assert logs[:3] == [
                ("info", f"{name} is imported"),
                ("info", f"mine: {name} logs"),
                ("warning", f"{name} is worried"),
            ]
            assert all(name in text or text == "no end of line" for _, text in logs)
            assert not any("does not say this" in text for _, text in logs)

    assert "record" not in in_worker(work)


def test_what_a_failing_model_said_comes_before_its_failure(tmp_path):
    path = tmp_path / "failing.py"
    path.write_text("print('on the way')\nraise ValueError('end')\n")

    async def work(session: Session, log_file: Path) -> None:
        await session.load(path, 0)
        assert session.logs("failing") == [("info", "on the way")]
        assert [type(m).__name__ for m in session.said][-2:] == ["Log", "Failed"]
        assert isinstance(session.said[-1], Failed)

    in_worker(work)


def test_without_capture_the_workers_own_output_has_it(talkative):
    async def work(session: Session, log_file: Path) -> None:
        await session.load(talkative[0], 0)
        assert Loaded in {type(m) for m in session.said}
        assert session.logs("first") == []

    text = in_worker(work, capture=False)
    assert "first is worried" in text


def test_native_output_stays_in_the_log_file(tmp_path):
    path = tmp_path / "native.py"
    path.write_text(
        "import os, sys\nos.write(1, b'from below\\n')\nsys.stdout.buffer.write(b'bytes\\n')\nsys.stdout.close()\n"
        "print('still here')\nimport penstock as ps\nflow = ps.Flow('f')\n"
        "flow.source('n', ps.sequence(1)).sink('o', ps.null())\n"
    )

    async def work(session: Session, log_file: Path) -> None:
        await session.load(path, 0)
        assert session.logs("native") == [("info", "still here")]

    text = in_worker(work)
    assert "from below" in text
    assert "bytes" in text


FORGETFUL = """
import weakref, gc, sys
import penstock as ps
from {module}_data import Big, state

class Node:
    pass

node = Node()
node.self = node  # only the collector frees it
node.data = Big(20_000_000)
flow = ps.Flow("{module}")
flow.source("n", ps.sequence(rate=50)).map("keep", lambda n: (n, node and n)[1]).sink("out", ps.null())
"""


def test_the_memory_of_a_model_that_is_gone_is_given_back(tmp_path):
    import psutil

    for name in ("big", "stays"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.py").write_text(FORGETFUL.format(module=name))
        (tmp_path / name / f"{name}_data.py").write_text("Big = bytearray\nstate = {}\n")

    async def work(session: Session, log_file: Path) -> None:
        await session.load(tmp_path / "stays" / "stays.py", 0)
        await session.start("stays")
        memory = psutil.Process(session.worker.pid).memory_info
        after = []
        for _ in range(6):
            session.said = [m for m in session.said if getattr(m, "model", "") != "big"]
            await session.load(tmp_path / "big" / "big.py", 1)
            assert "Loaded" in session.kinds("big"), session.said
            await session.start("big")
            await session.worker.send(Stop("big"))
            await session.until(lambda: Stopped("big") in session.said)
            await asyncio.sleep(0.2)
            after.append(memory().rss)
        assert max(after) - after[0] < 15_000_000, f"one of them has 20 MB: {after}"
        assert "Failed" not in session.kinds("stays")

    in_worker(work)


def test_what_utf8_does_not_have_can_be_sent_all_the_same():
    capture = Capture()
    capture.write("m", "info", os.fsdecode(b"file-\xff"))
    (line,) = capture.taken()
    assert line.text == "file-\\udcff"
    assert encode_message(line)
