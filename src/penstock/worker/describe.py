"""`python -m penstock.worker.describe TARGET`: the topology of a flow as JSON, from a throw-away process.

Exit status 0 and a `Topology` on standard output, or 1 and `{"error": …, "kind": …, "trace": …}`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

import msgspec

from penstock.errors import PenstockError
from penstock.flow.failure import author_line
from penstock.model.loader import load_graph


def main(arguments: list[str]) -> int:
    """`TARGET [CONFIG as JSON]`."""
    # What the author's module prints must not mix with the answer.
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        config = json.loads(arguments[1]) if len(arguments) > 1 else {}
        body, status = msgspec.json.encode(load_graph(arguments[0], config).topology), 0
    except (Exception, SystemExit) as error:
        text = str(error) if isinstance(error, PenstockError) else _explain(error)
        trace = "".join(traceback.format_exception(error))
        body, status = msgspec.json.encode({"error": text, "kind": type(error).__name__, "trace": trace}), 1
    with answer:
        answer.write(body + b"\n")
    return status


def _explain(error: BaseException) -> str:
    """What the author's module raised, and at which of its lines."""
    site, line = author_line(error)
    text = f"{type(error).__name__}: {error}"
    return text if not site else f"{text}\n  at {site}" + (f": {line}" if line else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
