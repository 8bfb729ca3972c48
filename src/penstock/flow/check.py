"""What makes a flow impossible, found before anything runs: every error names the step, the cause and the remedy."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from penstock.errors import FlowError
from penstock.flow.connector import Sink, Source
from penstock.flow.graph import Graph, Input, Partitioning, Step
from penstock.settings import KEY_GROUPS

__all__ = [
    "UnknownStep",
    "caller_site",
    "carries_times",
    "check_connector",
    "check_function",
    "check_graph",
    "check_keyed",
    "check_name",
    "check_on_error",
    "check_step",
    "unknown_step",
]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PACKAGE = str(Path(__file__).resolve().parent.parent) + "/"


def caller_site() -> str:
    """Where the author called us: `file.py:12`, the innermost frame outside of this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def check_name(name: Any, what: str = "step") -> None:
    """Names appear in addresses, metrics and files."""
    if not isinstance(name, str):
        raise FlowError(
            None,
            f"the first argument is the {what}'s name, a string, not {type(name).__name__} {name!r:.60}",
            remedy='for example .map("parse", parse)' if what == "step" else 'for example ps.Flow("word-count")',
            site=caller_site(),
        )
    if not _NAME.fullmatch(name):
        raise FlowError(
            name,
            f"this cannot be the name of a {what}",
            remedy="use 1 to 64 letters, digits, '_' and '-'",
            site=caller_site(),
        )


def check_function(step: str, fn: Any, arguments: int = 1, *, what: str = "function", generator: bool = False) -> None:
    """`fn` can be called with so many arguments and returns what the step expects: no coroutine, and a generator only
    where one is wanted."""
    if not callable(fn):
        raise FlowError(
            step,
            f"its {what} is {type(fn).__name__} {fn!r:.60}, which cannot be called",
            remedy="give a function",
            site=caller_site(),
        )
    if inspect.iscoroutinefunction(fn):
        raise FlowError(
            step,
            f"its {what} is async, but this step does not await",
            remedy="use .enrich(...) for async functions",
            site=caller_site(),
        )
    if inspect.isgeneratorfunction(fn) and not generator:
        raise FlowError(
            step,
            f"its {what} yields, so it gives many results for one record",
            remedy="use .flat_map(...)",
            site=caller_site(),
        )
    _check_arguments(step, fn, arguments, what)


def _check_arguments(step: str, fn: Callable[..., Any], arguments: int, what: str) -> None:
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*range(arguments))
    except TypeError as error:
        raise FlowError(
            step,
            f"its {what} cannot be called with {arguments} argument{'s'[: arguments != 1]}: {error}",
            remedy=f"its signature is {signature}",
            site=caller_site(),
        ) from None


def check_connector(step: str, connector: Any, kind: type[Source] | type[Sink]) -> None:
    """`connector` is a source where one is read, a sink where one is written."""
    if isinstance(connector, kind):
        return
    wanted = kind.__name__.lower()
    other = Sink if kind is Source else Source
    cause = f"it needs a {wanted}, not {type(connector).__name__} {connector!r:.60}"
    remedy = f"for example {'ps.files(path)' if kind is Source else 'ps.stdout()'}"
    if isinstance(connector, other):
        cause = f"{connector.describe()} is a {other.__name__.lower()}, not a {wanted}"
    elif isinstance(connector, (str, Path)):
        remedy = f"say how it is {'read' if kind is Source else 'written'}: ps.files({str(connector)!r})"
    elif isinstance(connector, (list, tuple, range)) and kind is Source:
        remedy = "wrap it: ps.iterable(...)"
    raise FlowError(step, cause, remedy=remedy, site=caller_site())


def check_on_error(on_error: Any) -> None:
    """The failure policy of a flow."""
    if on_error not in ("fail", "skip") and not isinstance(on_error, Sink):
        raise FlowError(
            None,
            f"on_error={on_error!r:.60} is no failure policy",
            remedy="use 'fail', 'skip', or a sink for the dead letters",
            site=caller_site(),
        )


class UnknownStep(FlowError, AttributeError):
    """A method that streams do not have. An `AttributeError` too, so that `hasattr` and `getattr` work as ever."""


def unknown_step(method: str, known: Iterable[str], site: str) -> UnknownStep:
    """The error of a misspelt step."""
    steps = sorted(name for name in known if not name.startswith("_"))
    near = difflib.get_close_matches(method, steps, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"the steps are: {', '.join(steps)}"
    return UnknownStep(None, f"a stream has no step {method!r}", remedy=remedy, site=site)


def check_keyed(step: str | None, method: str, site: str) -> FlowError:
    """The error of a keyed step on a stream without keys."""
    return FlowError(
        step,
        f".{method} works per key, but this stream has no keys",
        remedy='did you forget .key_by(...) before it? For one result over all: .key_by("all", lambda r: "all")',
        site=site,
    )


def check_step(step: Step, inputs: tuple[Partitioning, ...]) -> None:
    """Whether a step can stand on streams partitioned like this."""
    if step.keyed_input and Partitioning.NONE in inputs:
        raise check_keyed(step.name, step.kind, step.site)
    if step.kind == "merge" and Partitioning.NONE in inputs and set(inputs) != {Partitioning.NONE}:
        raise FlowError(
            step.name,
            "it merges streams with keys and streams without",
            remedy="key all of them with .key_by(...), or none (.map drops the keys)",
            site=step.site,
        )


def carries_times(steps: Mapping[str, Step], source: Input) -> bool:
    """Whether the records of a stream have event times: they were stamped, or came out of a window, and no step on the
    way lost them."""
    step = steps[source.step]
    if step.kind in _GIVE_TIMES:
        return True
    if not step.inputs or not getattr(step, "keeps_times", step.kind in _KEEP_TIMES):
        return False
    carriers = step.inputs[:1] if step.kind == "join_latest" else step.inputs
    return all(carries_times(steps, i) for i in carriers)


_GIVE_TIMES = frozenset({"stamp", "window"})
_KEEP_TIMES = frozenset({"join", "join_latest", "enrich"})


def check_graph(name: str, steps: Iterable[Step], on_error: Any = "fail", executors: int = 1) -> Graph:
    """The steps as a checked graph, in topological order. Raises `FlowError`."""
    check_name(name, "flow")
    check_on_error(on_error)
    if not isinstance(executors, int) or isinstance(executors, bool) or not 1 <= executors <= KEY_GROUPS:
        raise FlowError(
            None,
            f"executors={executors!r} is not a number of executors",
            remedy=f"use 1 to {KEY_GROUPS}",
            site=caller_site(),
        )
    known: dict[str, Step] = {}
    for step in steps:
        if step.name in known:
            raise duplicate(step, known[step.name])
        known[step.name] = step
    _check_inputs(name, known)
    graph = Graph(name, _in_order(known), on_error, executors)
    for step in graph.steps.values():
        check_step(step, tuple(graph.partitionings[i.step] for i in step.inputs))
        _check_time(graph, step)
    _check_used(graph)
    _check_final(graph)
    return graph


def duplicate(step: Step, earlier: Step) -> FlowError:
    """The error of two steps with one name; `day.time`, added for the step `day`, is told as `day`."""
    return FlowError(
        step.name.partition(".")[0],
        f"there is already a step of this name (at {earlier.site or 'an unknown place'})",
        remedy="names are unique in a flow, since state and metrics are found by them",
        site=step.site,
    )


def _check_inputs(flow: str, steps: Mapping[str, Step]) -> None:
    if not any(step.kind == "source" for step in steps.values()):
        raise FlowError(
            None,
            f"flow {flow!r} has no source",
            remedy='begin with flow.source("name", ps.files(...))',
            site=caller_site(),
        )
    for step in steps.values():
        for source in step.inputs:
            if source.step not in steps:
                raise FlowError(
                    step.name,
                    f"its input {source.step!r} is no step of this flow",
                    remedy=f"the steps are: {', '.join(steps)}",
                    site=step.site,
                )
            outputs = steps[source.step].output_names()
            if not 0 <= source.output < len(outputs):
                raise FlowError(
                    step.name,
                    f"step {source.step!r} has no output {source.output}",
                    remedy=f"its outputs are: {', '.join(outputs) or 'none'}",
                    site=step.site,
                )
        if not step.inputs and step.kind != "source":
            raise FlowError(step.name, "it has no input", remedy="call it on a stream", site=step.site)


def _in_order(steps: Mapping[str, Step]) -> dict[str, Step]:
    """Every step after its inputs, else in the order of writing."""
    ordered: dict[str, Step] = {}
    waiting = dict(steps)
    while waiting:
        ready = [step for step in waiting.values() if all(i.step in ordered for i in step.inputs)]
        if not ready:
            circle = _circle(waiting)
            raise FlowError(
                circle[0],
                f"it takes part in a cycle: {' -> '.join([*circle, circle[0]])}",
                remedy="records only go forward; keep what must come back in the state of a .fold(...)",
                site=waiting[circle[0]].site,
            )
        for step in ready:
            ordered[step.name] = waiting.pop(step.name)
    return ordered


def _circle(steps: Mapping[str, Step]) -> list[str]:
    """A cycle among steps that all wait for each other, in the direction of the records."""
    name = next(iter(steps))
    way: list[str] = []
    while name not in way:
        way.append(name)
        name = next(i.step for i in steps[name].inputs if i.step in steps)
    circle = list(reversed(way[way.index(name) :]))
    first = circle.index(min(circle, key=list(steps).index))
    return circle[first:] + circle[:first]


def _check_time(graph: Graph, step: Step) -> None:
    needed = getattr(step, "window", None) is not None or getattr(step, "within_ms", None) is not None
    if needed and not all(carries_times(graph.steps, i) for i in step.inputs):
        raise window_without_time(step.name, step.site)


def window_without_time(name: str | None, site: str) -> FlowError:
    """The error of event-time steps on streams without event time."""
    return FlowError(
        name,
        "it works in event time, but the records have none",
        remedy='say where the time is: on="ts" (a field) or on=lambda record: … (milliseconds or a datetime)',
        site=site,
    )


def _check_used(graph: Graph) -> None:
    """Every result goes somewhere, and something comes out."""
    if not any(step.kind == "sink" for step in graph.steps.values()):
        last = list(graph.steps.values())[-1]
        raise FlowError(
            last.name,
            f"flow {graph.name!r} has no sink, so nothing would come out",
            remedy='end it with .sink("out", ps.stdout())',
            site=last.site,
        )
    used = {(i.step, i.output) for step in graph.steps.values() for i in step.inputs}
    for step in graph.steps.values():
        for number, output in enumerate(step.output_names()):
            if (step.name, number) in used or output == "late":
                continue
            hint = "; to drop one side use .filter(...)" if number else ""
            which = "its result" if len(step.output_names()) == 1 else f"its output {output!r}"
            raise FlowError(
                step.name,
                f"{which} goes nowhere",
                remedy="add a .sink(...) to it, or remove it" + hint,
                site=step.site,
            )


def _check_final(graph: Graph) -> None:
    for step in graph.steps.values():
        if getattr(step, "emit", None) == "final" and not graph.topology.bounded:
            raise FlowError(
                step.name,
                'emit="final" waits for the end of the input, but a source of this flow never ends',
                remedy='use emit="update"',
                site=step.site,
            )
