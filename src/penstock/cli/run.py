"""`penstock run`: one flow on this machine, without a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.output import Json, console, error_console, json_text, print_lines, size, table, value_text
from penstock.cli.values import Set, assignments
from penstock.errors import PenstockError, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from penstock.cluster.local_run import Progress, RunRequest, RunResult


def run(
    target: Annotated[str, typer.Argument(metavar="FILE|DIR[:OBJECT]", help="Where the flow is.", show_default=False)],
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, max=256, help="Processes.")] = 1,
    executors: Annotated[
        int | None, typer.Option("--executors", "-e", min=1, max=256, help="Parallel executors of every stage.")
    ] = None,
    settings: Set = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", metavar="DIR", help="Go on from here after a stop or a crash, exactly once."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Results alone: no progress, no summary.")] = False,
    json: Json = False,
) -> None:
    """Run a flow here, without a cluster.

    A bounded one ends by itself; an unbounded one runs until Ctrl-C, which drains it (a second Ctrl-C kills).

    With --json the records of `collect` sinks are printed as NDJSON: {"step", "record"}.
    """
    config = assignments(settings)
    found = find(target)
    from penstock.cluster.local_run import RunRequest

    request = RunRequest(
        target=found,
        workers=workers,
        executors=executors,
        config=config,
        checkpoint_url=None if checkpoint is None else checkpoint_url(checkpoint),
    )
    result = asyncio.run(_run(request, quiet))
    _print_results(result, json)
    if not quiet:
        _print_summary(result)


def find(target: str) -> str:
    """The target with an absolute path. Raises `UsageError` when there is none."""
    path, colon, attribute = target.partition(":")
    found = Path(path).expanduser()
    if not found.exists():
        raise UsageError(f"no such file or directory: {path}")
    return f"{found.resolve()}{colon}{attribute}"


def checkpoint_url(text: str) -> str:
    """A directory or any fsspec URL as a URL. Raises `UsageError` for a file."""
    if "://" in text:
        return text
    path = Path(text).expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise UsageError(f"--checkpoint {text} is a file", remedy="name a directory; it is made when it does not exist")
    return path.as_uri()


async def _run(request: RunRequest, quiet: bool) -> RunResult:
    from penstock.cluster.local_run import run as run_locally
    from penstock.connectors.stdout_lines import READER_LEFT

    stop = asyncio.Event()
    with _progress(quiet) as (show, say), _draining(stop, say):
        try:
            return await run_locally(request, show, stop)
        except PenstockError as error:
            if READER_LEFT in str(error):  # `penstock run … | head`: not a failure that anybody wants to read about
                raise BrokenPipeError from None
            raise


@contextlib.contextmanager
def _draining(stop: asyncio.Event, say: Callable[[str], None]) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) drains; the second one ends the run there and then."""
    loop = asyncio.get_running_loop()
    running = asyncio.current_task()
    assert running is not None

    def interrupted() -> None:
        if stop.is_set():
            running.cancel()
            return
        stop.set()
        say("draining; Ctrl-C again ends it at once")

    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, interrupted)
    try:
        yield
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[tuple[Callable[[Progress], None], Callable[[str], None]]]:
    """Two callbacks: one shows progress (a bar on a terminal, nothing elsewhere), one prints a note beside it."""
    out = error_console()

    def say(text: str) -> None:
        out.print(text, style="yellow")  # by the bar's own console: above the bar, on a line of its own

    if quiet or not out.is_terminal:
        yield lambda progress: None, say
        return
    from rich.text import Text

    with _bar(out) as bar, contextlib.ExitStack() as stack:
        task = bar.add_task("starting", total=None, text="starting")
        if console().is_terminal:
            from penstock.cli.lines_above import lines_above

            stack.enter_context(lines_above(lambda text: bar.console.print(Text.from_ansi(text), soft_wrap=True)))
        yield lambda progress: _show(bar, task, progress), say


def _bar(out: Any) -> Bar:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        console=out,
        transient=True,
    )


def _show(bar: Bar, task: Any, progress: Progress) -> None:
    total = None if progress.share is None else 1.0
    bar.update(task, total=total, completed=progress.share or 0.0, text=progress_text(progress))


def progress_text(progress: Progress) -> str:
    """`12,300 records, 4,100/s, lag 12, checkpoint 3`: what is known."""
    parts = [f"{progress.records:,} records", f"{progress.rate:,.0f}/s"]
    if progress.share is not None:
        parts.insert(0, f"{progress.share:.0%}")
    if progress.lag is not None:
        parts.append(f"lag {progress.lag:,}")
    if progress.checkpoint is not None:
        parts.append(f"checkpoint {progress.checkpoint}")
    return ", ".join(parts)


def _print_results(result: RunResult, json: bool) -> None:
    if json:
        for step, records in result.collected.items():
            print_lines({"step": step, "record": record} for record in records)
        return
    out = console()
    for step, records in result.collected.items():
        columns = columns_of(records)
        if not out.is_terminal or not columns:
            for record in records:
                out.print(value_text(record), markup=False)
        else:
            rows = ([value_text(record.get(column, "")) for column in columns] for record in records)
            out.print(table(columns, rows, title=step))


def columns_of(records: list[Any]) -> list[str]:
    """The columns of a table of the records: the union of their fields, none unless all are objects."""
    columns: dict[str, None] = {}
    for record in records:
        if not isinstance(record, dict):
            return []
        columns.update(dict.fromkeys(map(str, record)))
    return list(columns)


def _print_summary(result: RunResult) -> None:
    """What the run came to, on standard error."""
    out = error_console()
    rate = result.records / result.elapsed if result.elapsed > 0 else 0.0
    verb = "drained after" if result.drained else "finished:"
    text = f"{result.flow} {verb} {result.records:,} records in {result.elapsed:.2f} s ({rate:,.0f}/s)"
    if result.restored is not None:
        text += f", continued from checkpoint {result.restored}"
    if result.checkpoint is not None:
        text += f", checkpoint {result.checkpoint}"
    rss = sum(report.rss for report in result.metrics)
    if rss:
        text += f", {len(result.metrics)} worker{'s' * (len(result.metrics) != 1)} with {size(rss)}"
    out.print(text, markup=False)
    noted = {name: count for name, count in result.counters.items() if count}
    if noted:
        out.print(f"counted: {json_text(noted, indent=0)}", style="yellow", markup=False)
