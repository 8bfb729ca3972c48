"""A TCP proxy between workers that delays, cuts, resets, or flips bits."""

import asyncio
import contextlib
import random


class Link:
    """The way to one worker. Faults count for what comes from now on; `reset` also for connections that there are."""

    def __init__(self, host: str, port: int, seed: int = 0) -> None:
        self.host, self.port = host, port
        self.delay = 0.0
        self.open = True
        self.flip = 0.0
        """Probability that one bit of a piece is flipped."""
        self.resets = self.flipped = 0
        self._rng = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> str:
        """The endpoint to use instead of the worker's."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset(self) -> None:
        """Break every connection."""
        for writer in list(self._writers):
            self.resets += 1
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.open:
            writer.transport.abort()
            return
        try:
            inward, outward = await asyncio.open_connection(self.host, self.port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, outward}
        tasks = {asyncio.create_task(self._pump(reader, outward)), asyncio.create_task(self._pump(inward, writer))}
        self._tasks |= tasks
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks -= tasks
        for each in (writer, outward):
            self._writers.discard(each)
            each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.delay:
                    await asyncio.sleep(self.delay)
                while not self.open:  # held up, as on a cut line: nothing is told
                    await asyncio.sleep(0.02)
                if self.flip and self._rng.random() < self.flip:
                    self.flipped += 1
                    data = bytearray(data)
                    data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
                writer.write(data)
                await writer.drain()
        writer.close()
