"""Several models in one worker process must not take anything from each other."""

import asyncio
import sys
import tempfile
import textwrap
from pathlib import Path

from penstock.cluster.launcher.process import ProcessLauncher, ProcessWorker
from penstock.cluster.launcher.protocol import WorkerSpec
from penstock.worker.messages import Connect, Connected, Epoch, ExecutorId, Load, Loaded, Message, Running, Start

FLOW = """
from pathlib import Path
import penstock as ps
from penstock.flow.connector import Sink, Writer

ps.config.defaults(flushed="")
FLUSHED = Path(ps.config["flushed"])

class Showing(Writer):
    def write(self, records):
        pass

    def flush(self):
        FLUSHED.touch()

class Show(Sink):
    def open(self, ctx):
        return Showing()

flow = ps.Flow({name!r})
flow.source("n", ps.sequence(rate=50)).sink("show", Show())
"""


async def expect(messages: "asyncio.Queue[Message]", kind: type[Message]) -> None:
    while not isinstance(await asyncio.wait_for(messages.get(), 20), kind):
        pass


async def run_model(worker: ProcessWorker, messages: "asyncio.Queue[Message]", load: Load) -> None:
    await worker.send(load)
    await expect(messages, Loaded)
    endpoints = {str(executor): worker.endpoint for executor in load.executors}
    await worker.send(Connect(load.model, endpoints, dict.fromkeys(endpoints, load.epoch)))
    await expect(messages, Connected)
    await worker.send(Start(load.model))
    await expect(messages, Running)


def test_the_sinks_of_all_models_are_flushed(tmp_path: Path) -> None:
    async def main(data_dir: str) -> None:
        worker = await ProcessLauncher().start(WorkerSpec(name="w", python=sys.executable, data_dir=data_dir))
        messages: asyncio.Queue[Message] = asyncio.Queue()

        async def listen() -> None:
            async for message in worker.messages():
                messages.put_nowait(message)

        listening = asyncio.create_task(listen())
        try:
            for number, name in enumerate(("first", "second", "third")):
                target = tmp_path / f"{name}.py"
                target.write_text(textwrap.dedent(FLOW.format(name=name)))
                load = Load(
                    model=name,
                    target=str(target),
                    number=number,
                    epoch=Epoch(0, 1),
                    executors=[ExecutorId(0, 0)],
                    counts={0: 1},
                    config={"flushed": str(tmp_path / name)},
                )
                await run_model(worker, messages, load)
            for name in ("first", "second", "third"):
                (tmp_path / name).unlink(missing_ok=True)
            deadline = asyncio.get_running_loop().time() + 10
            for name in ("first", "second", "third"):
                while not (tmp_path / name).exists():
                    assert asyncio.get_running_loop().time() < deadline, f"the sink of {name} is never flushed"
                    await asyncio.sleep(0.02)
        finally:
            await worker.stop()
            await listening

    with tempfile.TemporaryDirectory() as data_dir:
        asyncio.run(main(data_dir))
