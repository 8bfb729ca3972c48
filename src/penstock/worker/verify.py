"""What runs in the throw-away process that tries a model out: import, build, configuration, `self_test()`.

`answer` reads one request from a stream socket and writes one answer, both JSON with the length in front. The process
is a fork of `penstock.worker.forkserver`, or `python -m penstock.worker.verify FD`: with the interpreter of another
environment, and for `penstock run`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import msgspec

from penstock.errors import FlowError, PenstockError, UsageError
from penstock.flow.graph import Topology

__all__ = ["ANSWER_LIMIT", "LENGTH", "MOST_PROCESSES", "UNANSWERED", "Answer", "Request", "answer", "explain", "verify"]

LENGTH = struct.Struct(">I")
ANSWER_LIMIT = 16 * 2**20
"""Bytes."""
REQUEST_LIMIT = 64 * 2**20
MOST_PROCESSES = 256
"""That a verification may have at once."""
UNANSWERED = 71
"""The exit status when the answer could not be written."""
_TEXT_LIMIT = 4000
_MEGABYTE = 2**20


class Request(msgspec.Struct, kw_only=True):
    """What to try."""

    target: str
    """A model's directory or file, as for `load_graph`."""
    config: dict[str, Any] = {}
    self_test: bool = True
    memory: int = 0
    """The limit that is in force, bytes, for the error's text; 0: none is."""


class Answer(msgspec.Struct, kw_only=True):
    """What came out: a topology or an error."""

    topology: Topology | None = None
    error: str = ""
    """As the author would see it."""
    flow: bool = True
    """Whether the error is about the flow; otherwise about what was asked for."""


def verify(request: Request) -> Topology:
    """The topology of the model's flow, once it is built and has passed its own test. Raises whatever the author's
    code raises, and `FlowError` for a self-test that fails."""
    from penstock.model.loader import load_graph  # here: whoever asks imports this module as well, and loads nothing

    graph = load_graph(request.target, request.config)
    if request.self_test:
        _test(request.target)
    return graph.topology


def _test(target: str) -> None:
    """Call `self_test()` of the flow's module, or of the module where the flow's function is."""
    from penstock.model.loader import parse_target
    from penstock.model.manifest import read_manifest

    text, attribute = parse_target(target)
    path = Path(text)
    manifest = read_manifest(path)
    module, _, declared = manifest.flow.partition(":")
    found = sys.modules.get(path.stem if path.is_file() else module)
    test = getattr(found, "self_test", None)
    if test is None:
        made = getattr(found, (attribute or declared).partition(".")[0], None)
        test = getattr(sys.modules.get(str(getattr(made, "__module__", ""))), "self_test", None)
    if not callable(test):
        return
    failed = f"the self-test of {manifest.name} failed"
    try:
        passed = test() is not False
    except MemoryError:
        raise  # it is told with the limit
    except BaseException as error:  # also what `sys.exit` raises
        own = error.remedy if isinstance(error, PenstockError) else _missing(error, target)
        remedy = own or "nothing has changed; correct it, or the test"
        text = explain(error).removesuffix(f"\n  -> {own}")
        raise FlowError(None, f"{failed}: {text}", remedy=remedy) from error
    if not passed:
        code = getattr(test, "__code__", None)
        site = None if code is None else f"{Path(code.co_filename).name}:{code.co_firstlineno}"
        raise FlowError(
            None, f"{failed}: self_test() returned False", site=site, remedy="let it raise an error that says why"
        )


def _missing(error: BaseException, target: str) -> str | None:
    """What to do about a package that is imported and not declared."""
    if not isinstance(error, ModuleNotFoundError) or not error.name or "." in error.name:
        return None  # of `a.b`, `a` is there
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    from penstock.model.loader import parse_target
    from penstock.model.manifest import manifest_file, read_manifest

    path = Path(parse_target(target)[0])
    with contextlib.suppress(PenstockError, InvalidRequirement):
        declared = {canonicalize_name(Requirement(text).name) for text in read_manifest(path).requires}
        if canonicalize_name(error.name) in declared:
            return None
    packed = path.is_dir() and manifest_file(path) is not None
    where = 'of pyproject.toml, or of the "# /// script" head of a single file'
    if not packed:
        where = "of pyproject.toml" if path.is_dir() else 'in a "# /// script" head of the file'
    return f'add "{error.name}", or the package that brings it, to the dependencies {where}'


def explain(error: BaseException) -> str:
    """What the author's module raised, and at which of its lines."""
    if isinstance(error, PenstockError):
        return str(error)
    from penstock.flow.failure import author_line

    site, line = author_line(error)
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # its own `__str__` may fail
        text = type(error).__name__
    if isinstance(error, SyntaxError) and site == f"{Path(error.filename or '').name}:{error.lineno}":
        text = f"{type(error).__name__}: {error.msg}"  # its place follows
    text = text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + "…"
    return text if not site else f"{text}\n  at {site}" + (f": {line}" if line else "")


def answered(request: Request) -> Answer:
    """Verify, and say how it went. Nothing that the author's code raises gets out."""
    try:
        return Answer(topology=verify(request))
    except BaseException as error:  # also what `sys.exit` raises
        if request.memory and isinstance(error, MemoryError):
            _make_room()
            limit = f"the limit is {request.memory / _MEGABYTE:,.0f} MiB"
            text = f"it needs more memory than a model may use while it is verified ({limit})\n{explain(error)}"
            return Answer(error=text)
        usage = isinstance(error, UsageError) and not isinstance(error, FlowError)
        remedy = _missing(error, request.target)
        return Answer(error=explain(error) + (f"\n  -> {remedy}" if remedy else ""), flow=not usage)


def _make_room() -> None:
    """Let the answer be written although the limit has been reached."""
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def answer(stream: socket.socket) -> int:
    """Serve one request; the exit status for the process."""
    request = msgspec.json.decode(_read(stream), type=Request)
    reply = answered(request)
    for output in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            output.flush()
    body = msgspec.json.encode(reply)
    if len(body) > ANSWER_LIMIT:
        text = f"the description of the flow has {len(body):,} bytes; {ANSWER_LIMIT:,} are possible"
        body = msgspec.json.encode(Answer(error=text))
    try:
        stream.sendall(LENGTH.pack(len(body)) + body)
    except OSError:
        return UNANSWERED
    return 0


def _read(stream: socket.socket) -> bytes:
    (size,) = LENGTH.unpack(_exactly(stream, LENGTH.size))
    if size > REQUEST_LIMIT:
        raise UsageError(f"a request of {size:,} bytes is over {REQUEST_LIMIT:,}")
    return _exactly(stream, size)


def _exactly(stream: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = stream.recv(min(size - len(data), _MEGABYTE))
        if not part:
            raise UsageError("the request ended early")
        data += part
    return bytes(data)


def main(arguments: list[str]) -> int:
    """`FD`: a connected stream socket. Limits, directory and output are set by whoever starts this."""
    return answer(socket.socket(fileno=int(arguments[0])))


if __name__ == "__main__":
    # No finalisers and exit handlers of the author's code: the answer is given, the process is not needed any more.
    os._exit(main(sys.argv[1:]))
