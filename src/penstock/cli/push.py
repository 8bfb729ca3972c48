"""`penstock push`: send records to a source of a model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from penstock.cli.connection import DEFAULT_URL, Token, Url
from penstock.cli.output import Json, error_console, print_json
from penstock.errors import PenstockError, UsageError

if TYPE_CHECKING:
    from penstock.client import PushResult

PIECE = 256 * 2**10
"""Bytes that one request carries at most, unless a single line is longer."""
LONGEST = 64 * 2**20
"""Bytes of a line. No node takes a record of this size, and a file without line ends must not fill the memory."""
GRACE = 5.0
"""Seconds that what is under way has to be acknowledged after Ctrl-C."""


def push(
    stream: Annotated[str, typer.Argument(help="MODEL/SOURCE or GROUP/MODEL/SOURCE.", show_default=False)],
    file: Annotated[str, typer.Argument(help="NDJSON: one JSON value per line; - is standard input.")] = "-",
    ordered: Annotated[
        bool, typer.Option("--ordered", help="One request at a time, to one executor: it takes the records in order.")
    ] = False,
    client: Annotated[
        str | None, typer.Option("--client", help="With --seq: who sends, so that a repeated push is taken once.")
    ] = None,
    seq: Annotated[int | None, typer.Option("--seq", min=0, help="The number of the first request.")] = None,
    deadline: Annotated[float, typer.Option("--deadline", min=0.1, help="Seconds to wait for room.")] = 60.0,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Push records to a source of a model.

    Waits while the cluster is under pressure, follows executors that move; when it is done, every record is retained.
    Ctrl-C waits a moment for what is under way, and says what is acknowledged.
    """
    if (client is None) != (seq is None):
        raise UsageError("--client and --seq belong together", remedy="give both or none")
    options: dict[str, Any] = {"ordered": ordered, "client": client, "seq": seq, "deadline": deadline}
    source = 0 if file == "-" else _open(file)
    try:
        result, interrupted = asyncio.run(_push(stream, source, url, token, options))
    finally:
        if source:
            os.close(source)
    if json:
        print_json(msgspec.to_builtins(result) | ({"interrupted": True} if interrupted else {}))
    else:
        error_console().print(summary(stream, result, interrupted), markup=False)
    if interrupted:
        raise typer.Exit(130)


def summary(stream: str, result: PushResult, interrupted: bool) -> str:
    """What came of it, for people."""
    text = f"{_records(result.accepted)} retained by {stream}"
    if result.resent:
        text += f" ({result.resent:,} {'request' if result.resent == 1 else 'requests'} sent again)"
    if not interrupted:
        return text
    text = f"interrupted: {text}, the first {result.through:,} of the input without a gap"
    return text + (f"; {result.pending:,} more may have been taken" if result.pending else "")


def _records(number: int) -> str:
    return f"{number:,} {'record' if number == 1 else 'records'}"


def _open(file: str) -> int:
    path = Path(file)
    if path.is_dir():
        raise UsageError(f"{file} is a directory", remedy="name a file with one JSON value per line")
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise UsageError(f"no such file: {file}") from None
    except PermissionError:
        raise UsageError(f"{file} cannot be read: permission denied") from None


async def _push(
    stream: str, source: int, url: str, token: str | None, options: dict[str, Any]
) -> tuple[PushResult, bool]:
    """The result, and whether Ctrl-C came before the end."""
    stop = asyncio.Event()
    with _stopping(stop) as give_up:
        from penstock.client import AsyncClient, PushResult

        latest = PushResult()
        with _progress() as show:

            def progress(result: PushResult) -> None:
                nonlocal latest
                latest = result
                show(result)

            async with AsyncClient(url, token) as client:
                bodies = pieces(source, stop, even=options["client"] is not None)
                pushing = asyncio.create_task(client.push_ndjson(stream, bodies, on_progress=progress, **options))
                try:
                    result = await _unless(give_up, pushing)
                except UsageError:
                    raise
                except PenstockError as error:
                    raise explained(error) from None
    return result or latest, stop.is_set()


async def _unless(give_up: asyncio.Event, pushing: asyncio.Task[PushResult]) -> PushResult | None:
    """The result, or `None` when it was given up before."""
    giving_up = asyncio.create_task(give_up.wait())
    try:
        await asyncio.wait({pushing, giving_up}, return_when=asyncio.FIRST_COMPLETED)
        return pushing.result() if pushing.done() else None
    finally:
        for task in (pushing, giving_up):
            task.cancel()
        await asyncio.gather(pushing, giving_up, return_exceptions=True)


@contextlib.contextmanager
def _stopping(stop: asyncio.Event) -> Iterator[asyncio.Event]:
    """Ctrl-C sets `stop`: nothing more is read. A second one, or some seconds, set the event that is given."""
    loop = asyncio.get_running_loop()
    give_up = asyncio.Event()

    def interrupted() -> None:
        if stop.is_set():
            give_up.set()
            return
        stop.set()
        loop.call_later(GRACE, give_up.set)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, interrupted)
    try:
        yield give_up
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[PushResult], None]]:
    """A line on a terminal, nothing elsewhere."""
    out = error_console()
    if not out.is_terminal:
        yield lambda result: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("pushing", total=None)
        start = time.monotonic()

        def show(result: PushResult) -> None:
            rate = result.accepted / max(time.monotonic() - start, 1e-3)
            bar.update(task, description=progress_text(result, rate))

        yield show


def progress_text(result: PushResult, rate: float) -> str:
    """`12,300 records acknowledged, 4,100/s, 3 lanes, 2 sent again`: what is known."""
    parts = [f"{_records(result.accepted)} acknowledged", f"{rate:,.0f}/s"]
    if len(result.lanes) > 1:
        parts.append(f"{len(result.lanes)} lanes")
    if result.resent:
        parts.append(f"{result.resent:,} sent again")
    return ", ".join(parts)


def explained(error: PenstockError) -> PenstockError:
    """`error` with the place in the input, and what is retained: the node knows the request alone that it refused."""
    result: PushResult | None = getattr(error, "pushed", None)
    if result is None or not result.accepted:
        return error
    line, before = getattr(error, "problem", {}).get("line"), getattr(error, "before", None)
    at = f"line {before + line} of the input: " if isinstance(line, int) and isinstance(before, int) else ""
    remedy = f"{_records(result.accepted)} are retained"
    if result.through == result.accepted:
        remedy += ", the first of the input; go on behind them"
    else:
        remedy += f"; of the input, the first {result.through:,} without a gap"
    return PenstockError(f"{at}{getattr(error, 'detail', error.message)}", remedy=remedy)


class Lines:
    """Whole lines out of bytes. `even`: cut into pieces of the same size however the bytes came, for pushes that may be
    repeated by number."""

    def __init__(self, *, even: bool = False) -> None:
        self._even = even
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What is complete now. Raises `UsageError` for a line that is too long."""
        start = max(0, len(self._rest) - 1)
        self._rest += data
        if self._even:
            while len(self._rest) > PIECE and (end := self._rest.find(b"\n", PIECE - 1) + 1):
                yield self._taken(end)
        elif end := self._rest.rfind(b"\n", start) + 1:
            yield self._taken(end)
        if len(self._rest) > LONGEST:
            raise UsageError(
                f"a line is longer than {LONGEST // 2**20} MiB", remedy="push one JSON value per line, with line ends"
            )

    def last(self) -> Iterator[bytes]:
        """What is left at the end."""
        if self._rest.strip():
            yield self._taken(len(self._rest))

    def _taken(self, end: int) -> bytes:
        piece = bytes(self._rest[:end])
        del self._rest[:end]
        return piece


async def pieces(source: int, stop: asyncio.Event, *, even: bool = False) -> AsyncIterator[bytes]:
    """Whole lines from a file descriptor, as much as is there: a slow pipe goes line by line, a file in big pieces.
    Ends when `stop` is set."""
    if source == 0 and sys.stdin.isatty():
        error_console().print("one JSON value per line, end with Ctrl-D", style="dim")
    lines = Lines(even=even)
    while data := await _read(source, stop):
        for piece in lines.feed(data):
            yield piece
    if not stop.is_set():
        for piece in lines.last():
            yield piece


async def _read(source: int, stop: asyncio.Event) -> bytes:
    """What is there, once something is; empty at the end and when `stop` is set."""
    if stat.S_ISREG(os.fstat(source).st_mode):
        return b"" if stop.is_set() else await asyncio.to_thread(os.read, source, PIECE)
    if not await _readable(source, stop):
        return b""
    data = os.read(source, PIECE)
    while data and len(data) < PIECE and select.select([source], [], [], 0)[0]:
        more = os.read(source, PIECE - len(data))
        if not more:
            break
        data += more
    return data


async def _readable(source: int, stop: asyncio.Event) -> bool:
    """Wait until `source` can be read without waiting. False: `stop` came first."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(source, ready.set)
    except PermissionError:  # a device that is always ready
        return not stop.is_set()
    waits = {asyncio.create_task(ready.wait()), asyncio.create_task(stop.wait())}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        loop.remove_reader(source)
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
    return not stop.is_set()
