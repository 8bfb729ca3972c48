"""Keyed state for a later version of a model, in a live update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from penstock import codec
from penstock.errors import StepError
from penstock.worker import snapshot
from penstock.worker.model import Model


def migrating(model: Model, from_version: str | None) -> Callable[[snapshot.Part], snapshot.Part]:
    """What turns the state of `from_version` (`None`: of the same package) into this version's: the author's
    `migrate(from_version, state)`, or nothing. `state` is step -> key -> what the step keeps for the key, for the keyed
    steps of one executor; it is not called for executors without any. Steps that this version does not have lose
    theirs; new ones begin empty."""

    def convert(part: snapshot.Part) -> snapshot.Part:
        if model.migrate is None or from_version is None or not part.keyed:
            return part
        state = {name: dict(zip(*map(codec.unpack, trees), strict=True)) for name, trees in part.keyed.items()}
        try:
            changed: Any = model.migrate(from_version, state)
        except Exception as error:
            raise StepError("migrate", f"migrate({from_version!r}, state): {type(error).__name__}: {error}") from error
        if not isinstance(changed, dict) or not all(isinstance(keys, dict) for keys in changed.values()):
            raise StepError(
                "migrate",
                f"migrate({from_version!r}, state) returned {type(changed).__name__}; a dictionary of step -> key -> "
                "state was expected: return the one that it was given, changed",
            )
        part.keyed = {name: (codec.pack(list(keys)), codec.pack(list(keys.values()))) for name, keys in changed.items()}
        return part

    return convert
