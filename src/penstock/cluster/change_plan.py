"""What an operation would do, in words, without doing it; pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penstock.cluster.service import ChangePlan
from penstock.cluster.transaction.preconditions import check
from penstock.cluster.transaction.records import Entry, Kind, Operation, State, Store
from penstock.cluster.view import View, decode_config
from penstock.flow.graph import Topology
from penstock.model.package import Package


def change_plan(
    store: Store, view: View, operation: Operation, package: Package | None, topology: Topology | None
) -> ChangePlan:
    """`package` and `topology`: as the operation would leave them, as far as it says."""
    entry = store.models.get(operation.model)
    refusal = check(operation, entry, None)
    here = entry if entry is not None and entry.state is not State.DELETED else None
    known = view.models.get(operation.model)
    before = known.entry.topology if known is not None and here is not None else None
    missing = sorted(name for name, member in view.members.items() if not member.live)
    reason, remedy = ("", "") if refusal is None else (refusal.reason, refusal.remedy)
    if not reason and missing:
        reason, remedy = f"not every node is there: {', '.join(missing)}", "try again later"
    return ChangePlan(
        kind=operation.name,
        model=operation.model,
        possible=not reason,
        reason=reason,
        remedy=remedy,
        changes=list(_changes(operation, here, before, topology, package)),
        nodes={} if reason else dict.fromkeys(sorted(view.members), _duty(operation, here, package)),
    )


def _changes(
    operation: Operation,
    entry: Entry | None,
    before: Topology | None,
    after: Topology | None,
    package: Package | None,
) -> Iterator[str]:
    match operation.kind:
        case Kind.DELETE:
            yield "the model, its package and its earlier versions are removed"
            return
        case Kind.OFFLINE:
            yield "its executors stop; their keyed state is dropped"
            return
        case Kind.ONLINE:
            yield "its executors start with empty state"
        case Kind.ADD:
            yield f"new model, version {operation.version}, package {operation.digest[:12]}"
        case Kind.UPDATE:
            if entry is not None and operation.digest not in ("", entry.digest):
                yield f"version {entry.version} -> {operation.version}"
                yield f"package {entry.digest[:12]} -> {operation.digest[:12]}"
    if package is not None and package.manifest.requires:
        yield f"needs an environment with {', '.join(package.manifest.requires)}"
    if operation.config is not None:
        yield from _settings(decode_config(entry.config) if entry is not None else {}, decode_config(operation.config))
    if after is not None:
        yield from _steps(before, after)


def _settings(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            yield f"setting {name}: {before[name]!r} -> its default"
        elif name not in before:
            yield f"setting {name}: its default -> {after[name]!r}"
        elif before[name] != after[name]:
            yield f"setting {name}: {before[name]!r} -> {after[name]!r}"


def _steps(before: Topology | None, after: Topology) -> Iterator[str]:
    old = [] if before is None else [step for stage in before.stages for step in stage.steps]
    new = [step for stage in after.stages for step in stage.steps]
    if before is None:
        yield f"steps: {' '.join(new)}"
        return
    if gone := [step for step in old if step not in new]:
        yield f"steps that go: {' '.join(gone)}"
    if come := [step for step in new if step not in old]:
        yield f"steps that come: {' '.join(come)}"


def _duty(operation: Operation, entry: Entry | None, package: Package | None) -> str:
    match operation.kind:
        case Kind.ADD | Kind.UPDATE if operation.digest and (entry is None or operation.digest != entry.digest):
            size = "" if package is None else f" ({package.size:,} bytes)"
            return f"fetch the package{size}, make its environment, verify it"
        case Kind.ADD | Kind.UPDATE:
            return "verify the package with the configuration"
        case Kind.ONLINE:
            return "keep a worker ready"
        case Kind.OFFLINE:
            return "stop what runs of it"
        case _:
            return "remove its files"
