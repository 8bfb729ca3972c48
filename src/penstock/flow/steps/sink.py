"""Where records leave a flow. The worker writes to the sink itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from penstock.flow.connector import Sink
from penstock.flow.graph import Step

__all__ = ["SinkStep"]


@dataclass(frozen=True, kw_only=True)
class SinkStep(Step):
    """Every record goes to `sink`."""

    kind: ClassVar[str] = "sink"
    outputs: ClassVar[tuple[str, ...]] = ()
    sink: Sink
