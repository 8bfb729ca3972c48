"""Where the process of a command begins: signals and standard streams are put in order before anything else."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Run the command; a Ctrl-C while its modules are imported ends the process at once and without a trace."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # a caller that ignores Ctrl-C (`nohup`) stays respected
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from penstock.cli.main import main as commands

    signal.signal(signal.SIGINT, before)
    commands()


def open_standard_streams() -> None:
    """Give the null device to standard streams that the caller closed (`>&-`).

    Otherwise `sys.stdout` is `None`, and the next file or socket to be opened gets number 1 and whatever is printed.
    """
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
