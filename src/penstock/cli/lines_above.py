"""What a flow prints, above a progress bar on the same terminal instead of through it."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import sys
from collections.abc import Callable, Iterator

PIECE = 64 * 2**10


@contextlib.contextmanager
def lines_above(show: Callable[[str], None]) -> Iterator[None]:
    """Inside, whole lines that this process and its children write to standard output go to `show`.

    Children inherit the pipe, so it must be entered before they start and left after they have ended. Needs a running
    event loop. While `show` is slow the pipe fills up and the writers wait.
    """
    loop = asyncio.get_running_loop()
    sys.stdout.flush()
    saved = os.dup(1)
    source, sink = os.pipe()
    os.set_blocking(source, False)
    os.dup2(sink, 1)
    os.close(sink)
    lines = _Lines(source, show)
    unbuffered = os.environ.get("PYTHONUNBUFFERED")
    os.environ["PYTHONUNBUFFERED"] = "1"  # a pipe is no terminal, and what an author prints is to be seen at once
    loop.add_reader(source, lines.take)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
        loop.remove_reader(source)
        while lines.take():
            pass
        lines.end()
        os.close(source)
        if unbuffered is None:
            del os.environ["PYTHONUNBUFFERED"]
        else:
            os.environ["PYTHONUNBUFFERED"] = unbuffered


class _Lines:
    """Cuts what a pipe brings into whole lines."""

    def __init__(self, source: int, show: Callable[[str], None]) -> None:
        self.source, self.show = source, show
        self.decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self.rest = ""

    def take(self) -> bool:
        """Show what has arrived; whether there was anything."""
        try:
            data = os.read(self.source, PIECE)
        except BlockingIOError:
            return False
        whole, newline, self.rest = (self.rest + self.decoder.decode(data)).rpartition("\n")
        if newline:
            self.show(whole)
        return bool(data)

    def end(self) -> None:
        """Show a last line that has no end."""
        rest = self.rest + self.decoder.decode(b"", final=True)
        if rest:
            self.show(rest)
