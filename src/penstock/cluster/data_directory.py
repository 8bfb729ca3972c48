"""Where a node keeps its things, for itself alone."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from penstock.errors import ClusterError

LOCK = "lock"


class DataDirectory:
    """`path` for what outlives the process (library, environments, journal), `scratch` for what does not (sockets and
    logs of workers). Without a wanted place both are temporary. `close` gives it free, and so does the death of a
    process."""

    def __init__(self, wanted: Path | None) -> None:
        """Raises `ClusterError` when the place cannot be used, or another process uses it."""
        self.scratch = Path(tempfile.mkdtemp(prefix="penstock-node-"))
        self.path = wanted or self.scratch / "data"
        self._lock = -1
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ClusterError(
                f"another process uses the data directory {self.path}", remedy="give each node one of its own (--data)"
            ) from None
        except OSError as error:
            self.close()
            raise ClusterError(
                f"the data directory {self.path} cannot be used: {error.strerror}", remedy="choose another with --data"
            ) from error

    def close(self) -> None:
        """Remove what is temporary. May be called twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        shutil.rmtree(self.scratch, ignore_errors=True)
