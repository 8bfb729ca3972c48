"""Where the process of a command begins: signals and standard streams are put in order before the slow imports."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """The console script."""
    # A Ctrl-C while modules are imported ends the process at once and without a trace; nothing has been started yet.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    open_standard_streams()
    from penstock.cli.main import main as commands

    signal.signal(signal.SIGINT, signal.default_int_handler)
    commands()


def open_standard_streams() -> None:
    """Give the null device to standard streams that the caller closed (`>&-`).

    Otherwise `sys.stdout` is `None`, and the next file or socket to be opened gets number 1 and whatever is printed.
    """
    import sys

    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
