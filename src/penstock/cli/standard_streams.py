"""Standard streams that a caller may have closed."""

from __future__ import annotations

import os
import sys


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
