"""What happens when the author's code raises: the three policies, and how the trouble is told.

`fail` stops the flow with a `StepError` that names the step, the record and the author's own line. `skip` leaves the
record out and counts it. A dead-letter sink gets a plain description of the record and the error, and counts it.
"""

from __future__ import annotations

import importlib
import linecache
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.errors import FlowError, StepError
from penstock.flow.operator import FailurePolicy, StepContext

__all__ = ["DeadLetter", "Fail", "Skip", "author_line", "policy", "shorten"]

RECORD_CHARS = 200
"""A record is shown in errors with at most so many characters."""
_PACKAGE = str(Path(__file__).resolve().parent.parent) + "/"
_IMPORTING = str(Path(importlib.__file__).parent) + "/"
_LIBRARIES = tuple({sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_PARTS = {
    "time": "its event time",
    "left-time": "the event time of its left side",
    "right-time": "the event time of its right side",
    "key": "its key",
    "map": "its map",
}
"""What the steps do that a stream's methods add before the one that the author named: `<name>.<part>`."""


class Fail:
    """Stop the flow."""

    def __call__(self, ctx: StepContext, record: Any, error: Exception) -> None:
        raise step_error(ctx, record, error) from error


class Skip:
    """Leave the record out; counted as `skipped`."""

    def __call__(self, ctx: StepContext, record: Any, error: Exception) -> None:
        ctx.counters["skipped"] += 1


class DeadLetter:
    """Describe the record to `write` as a plain dict with `step`, `record`, `error` and `site`; counted as
    `dead_letter`."""

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self.write = write

    def __call__(self, ctx: StepContext, record: Any, error: Exception) -> None:
        ctx.counters["dead_letter"] += 1
        site, _ = author_line(error, ctx.site)
        step, _ = _written(ctx.step)
        plain = _plain(record)
        self.write({"step": step, "record": plain, "error": f"{type(error).__name__}: {error}", "site": site})


def policy(on_error: Any, dead_letter: Callable[[dict[str, Any]], None] | None = None) -> FailurePolicy:
    """The policy of a graph: `on_error` is `fail`, `skip` or a dead-letter sink, which the runner has opened as
    `dead_letter`. Raises `FlowError` for anything else, or when the sink was not opened."""
    if on_error == "fail":
        return Fail()
    if on_error == "skip":
        return Skip()
    if dead_letter is None:
        raise FlowError(None, f"on_error={on_error!r} needs a dead-letter writer", remedy="use 'fail' or 'skip'")
    return DeadLetter(dead_letter)


def step_error(ctx: StepContext, record: Any, error: Exception) -> StepError:
    """The error that a person reads. A `StepError` stays as it is."""
    if isinstance(error, StepError):
        return error
    shown = shorten(record)
    site, text = author_line(error, ctx.site)
    lines = [f"{_called(ctx)}: {type(error).__name__}: {error}", f"  record: {shown}"]
    if site:
        lines.append(f"  at {site}" + (f": {text}" if text else ""))
    return StepError(_written(ctx.step)[0], "\n".join(lines), record=shown, site=site)


def _written(step: str) -> tuple[str, str]:
    """The name that the author wrote, and which part of that step this one is: `day.time` was added for `day`."""
    name, _, part = step.partition(".")
    return (name, _PARTS[part]) if part in _PARTS else (step, "")


def _called(ctx: StepContext) -> str:
    """The step by the name that the author gave it, for an error."""
    name, part = _written(ctx.step)
    if not part:
        return f"step {name!r}"
    return f"step {name!r} ({part}, {ctx.detail})" if ctx.detail else f"step {name!r} ({part})"


def shorten(record: Any, limit: int = RECORD_CHARS) -> str:
    """`repr(record)`, at most `limit` characters; never raises."""
    try:
        text = repr(record)
    except Exception as error:
        text = f"<{type(record).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def author_line(error: BaseException, fallback: str = "") -> tuple[str, str]:
    """The innermost line of the author's own code in the traceback, as (`file.py:12`, source text); code installed as
    a library counts only when there is no other. Of a file that is not Python, the line that cannot be read. `fallback`
    is given when no line is the author's."""
    if isinstance(error, SyntaxError) and _is_own(error.filename or "<unknown>"):
        file, at = str(error.filename), error.lineno or 1
        return f"{Path(file).name}:{at}", (error.text or linecache.getline(file, at)).strip()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_foreign(frame.filename)]
    own = [frame for frame in frames if _is_own(frame.filename)]
    for frame in reversed(own or frames):
        line = frame.line or linecache.getline(frame.filename, frame.lineno or 0)
        return f"{Path(frame.filename).name}:{frame.lineno}", line.strip()
    return fallback, ""


def _is_foreign(filename: str) -> bool:
    return not filename.startswith((_PACKAGE, _IMPORTING, "<frozen"))


def _is_own(filename: str) -> bool:
    """Whether it is a file that the author wrote; `<string>` is none."""
    return _is_foreign(filename) and not filename.startswith(_LIBRARIES) and filename[:1] != "<"


def _plain(record: Any) -> Any:
    """The record itself when it is made of JSON values (or bytes that are text), else its shortened repr."""
    told = _as_text(record)
    return told if _is_json(told, depth=0) else shorten(record, 2000)


def _as_text(value: Any, depth: int = 0) -> Any:
    """The value with bytes in UTF-8 as text, also in lists and dictionaries; other bytes stay."""
    if type(value) is bytes:
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if depth > 8:
        return value
    if type(value) is list:
        return [_as_text(item, depth + 1) for item in value]
    if type(value) is dict:
        return {name: _as_text(item, depth + 1) for name, item in value.items()}
    return value


def _is_json(value: Any, depth: int) -> bool:
    if depth > 8:
        return False
    if value is None or type(value) in (str, int, float, bool):
        return True
    if type(value) is list:
        return all(_is_json(item, depth + 1) for item in value)
    if type(value) is dict:
        return all(type(name) is str and _is_json(item, depth + 1) for name, item in value.items())
    return False
