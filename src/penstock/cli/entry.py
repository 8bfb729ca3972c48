"""Where the process of a command begins: a Ctrl-C is put in order before anything else."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command; a Ctrl-C while its modules are imported ends the process at once and without a trace."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # a caller that ignores Ctrl-C (`nohup`) stays respected
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from penstock.cli.main import main as commands

    signal.signal(signal.SIGINT, before)
    commands()
