"""The stream between worker and supervisor."""

import asyncio
import socket

import pytest

from penstock.errors import WorkerError
from penstock.worker.control import MAX_MESSAGE, MessageBuffer, SupervisorControl, WorkerControl, encode_message
from penstock.worker.messages import ExecutorId, Finished, Lookup, Reply


def test_messages_survive_any_cut_of_the_stream() -> None:
    sent = [Lookup(7, "g/m", "count", "a"), Finished("g/m", ExecutorId(1, 2)), Reply(7, True, {"found": True})]
    data = b"".join(map(encode_message, sent))
    for size in (1, 2, 3, 7, len(data)):
        buffer = MessageBuffer()
        got = [m for start in range(0, len(data), size) for m in buffer.feed(data[start : start + size])]
        assert got == sent


def test_a_stranger_is_told_apart() -> None:
    with pytest.raises(WorkerError, match="not Penstock"):
        list(MessageBuffer().feed(b"GET / HTTP/1.1\r\n"))
    with pytest.raises(WorkerError, match="cannot be read"):
        list(MessageBuffer().feed(b"\x02\x00\x00\x00\xc1\xc1"))
    assert int.from_bytes(b"GET ", "little") > MAX_MESSAGE


def test_both_ends_talk_and_each_sees_the_other_go() -> None:
    async def talk() -> None:
        ours, theirs = socket.socketpair()
        worker = WorkerControl(theirs)
        supervisor = await SupervisorControl.open(ours)
        big = Reply(1, True, "x" * 100_000)
        worker.send(big)
        assert await supervisor.receive() == big
        await supervisor.send(Lookup(2, "g/m", "s", 5))
        for _ in range(100):
            messages = worker.receive()
            if messages:
                break
            await asyncio.sleep(0.01)
        assert messages == [Lookup(2, "g/m", "s", 5)]
        worker.close()
        assert await asyncio.wait_for(supervisor.receive(), 5) is None
        await supervisor.close()

    asyncio.run(talk())
