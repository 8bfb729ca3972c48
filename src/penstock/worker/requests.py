"""Questions that a worker answers about its executors: look-ups, listings, pushed records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penstock.connectors.json_lines import jsonable
from penstock.errors import UsageError
from penstock.flow.operator import KeyedOperator
from penstock.worker.messages import Listing, Lookup, Push, Reply
from penstock.worker.model import Model
from penstock.worker.sources import Lane


def answer(model: Model, message: Lookup | Listing | Push) -> Reply | None:
    """The reply; `None`: it follows when the records are protected. Raises `UsageError` for what is not here."""
    match message:
        case Lookup():
            return _lookup(model, message)
        case Listing():
            return _listing(model, message)
        case Push():
            return _push(model, message)


def _operators(model: Model, step: str) -> list[KeyedOperator]:
    chains = [executor.serving for executor in model.executors.values()]
    found = [chain.operators[step] for chain in chains if chain is not None and step in chain.operators]
    keyed = [operator for operator in found if isinstance(operator, KeyedOperator)]
    if not keyed:
        steps = ", ".join(model.graph.topology.keyed_steps) or "none"
        raise UsageError(
            f"step {step!r} of {model.name!r} has no keyed state in this worker", remedy=f"keyed steps: {steps}"
        )
    return keyed


def _aside(model: Model, step: str) -> Iterator[tuple[dict[Any, Any], KeyedOperator]]:
    """Keys that are on their way to another executor: until they are there they are shown here."""
    for replica in model.replicated():
        live = replica.live
        if replica.serving is not None and live is not None and step in live.shifting.aside:
            operator = live.chain.operators[step]
            assert isinstance(operator, KeyedOperator)
            yield live.shifting.aside[step][0], operator


def _lookup(model: Model, message: Lookup) -> Reply:
    states = [(operator.state, operator) for operator in _operators(model, message.step)]
    for state, operator in (*states, *_aside(model, message.step)):
        if message.key in state:
            view = operator.view(state[message.key])
            return Reply(message.id, True, {"found": True, "value": jsonable(view)})
    return Reply(message.id, True, {"found": False, "value": None})


def _listing(model: Model, message: Listing) -> Reply:
    """Keys are ordered by their text, which is also the cursor."""
    after = message.cursor
    chosen: list[tuple[str, Any, Any, KeyedOperator]] = []
    states = [(operator.state, operator) for operator in _operators(model, message.step)]
    for state, operator in (*states, *_aside(model, message.step)):
        for key, value in state.items():
            text = str(key)
            if after is None or text > after:
                chosen.append((text, key, value, operator))
    chosen.sort(key=lambda entry: entry[0])
    items = [
        [jsonable(key), jsonable(operator.view(value))] for _, key, value, operator in chosen[: max(0, message.limit)]
    ]
    return Reply(message.id, True, {"items": items, "more": len(chosen) > message.limit})


def _lane(model: Model, message: Push) -> Lane | None:
    if message.executor is None:
        return model.lane(message.source)
    for executor in model.plain():
        for lane in executor.lanes if executor.id.index == message.executor and not executor.draining else ():
            if lane.step == message.source and not lane.ended:
                return lane
    return None


def _push(model: Model, message: Push) -> Reply | None:
    for replica in model.replicated():
        if message.executor in (None, replica.id.index) and replica.takes(message.source):
            return replica.push(message)
    lane = _lane(model, message)
    if lane is None:
        raise UsageError(f"{model.name!r} has no open push source {message.source!r} in this worker")
    if not lane.reader.push(message.records, message.client, message.seq):
        return Reply(message.id, False, 0)
    lane.retry_at = 0.0
    return Reply(message.id, True, len(message.records))
