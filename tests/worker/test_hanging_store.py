"""A store of checkpoints that hangs: the worker goes on, and keeps one part of each executor waiting, not more."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from tests.worker.test_several_models import run_model

from penstock.cluster.launcher.process import ProcessLauncher
from penstock.cluster.launcher.protocol import WorkerSpec
from penstock.settings import RunSettings
from penstock.worker.messages import (
    Barrier,
    Checkpointed,
    CheckpointFailed,
    Epoch,
    ExecutorId,
    Load,
    Message,
    Metrics,
)

FLOW = """
import penstock as ps

flow = ps.Flow("flow")
flow.source("n", ps.sequence(rate=1000)).sink("out", ps.collect())
"""


def test_one_part_waits_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    folder = tmp_path / "store" / "flow" / "chk-00000001"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "0.0.part.tmp")  # to open it for writing takes until somebody reads

    async def main(data_dir: str) -> None:
        worker = await ProcessLauncher().start(WorkerSpec(name="w", python=sys.executable, data_dir=data_dir))
        messages: asyncio.Queue[Message] = asyncio.Queue()

        async def listen() -> None:
            async for message in worker.messages():
                messages.put_nowait(message)

        async def outcome() -> Checkpointed | CheckpointFailed:
            while True:
                message = await asyncio.wait_for(messages.get(), 20)
                if isinstance(message, Checkpointed | CheckpointFailed):
                    return message

        async def records_read() -> int:
            while True:
                message = await asyncio.wait_for(messages.get(), 20)
                if isinstance(message, Metrics):
                    return message.executors[0].records_in

        listening = asyncio.create_task(listen())
        try:
            load = Load(
                model="default/flow",
                target=str(tmp_path / "flow.py"),
                number=1,
                epoch=Epoch(1, 1),
                executors=[ExecutorId(0, 0)],
                counts={0: 1},
                checkpoint_url=str(tmp_path / "store"),
                settings=RunSettings(metrics_interval=0.05),
            )
            await run_model(worker, messages, load)
            await worker.send(Barrier("default/flow", 1))
            await worker.send(Barrier("default/flow", 2))
            said = await outcome()
            assert isinstance(said, CheckpointFailed)
            assert said.checkpoint == 2
            assert "has not taken the part of executor 0.0" in said.error
            first = await records_read()
            while await records_read() <= first:  # the flow goes on
                pass
            reader = os.open(folder / "0.0.part.tmp", os.O_RDONLY | os.O_NONBLOCK)
            try:
                said = await outcome()
                assert said.checkpoint == 1
            finally:
                os.close(reader)
            await worker.send(Barrier("default/flow", 3))
            said = await outcome()
            assert isinstance(said, Checkpointed), said
            assert said.checkpoint == 3
            assert (tmp_path / "store" / "flow" / "chk-00000003" / "0.0.part").stat().st_size == said.bytes
        finally:
            await worker.stop(2.0)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    with tempfile.TemporaryDirectory() as data_dir:
        asyncio.run(main(data_dir))
