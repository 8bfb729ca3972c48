"""Where records enter a flow. The worker reads the source itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from penstock.flow.connector import Source
from penstock.flow.graph import Step

__all__ = ["SourceStep"]


@dataclass(frozen=True, kw_only=True)
class SourceStep(Step):
    """Records of `source`, not keyed."""

    kind: ClassVar[str] = "source"
    source: Source
