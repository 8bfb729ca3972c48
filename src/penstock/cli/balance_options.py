"""`--rebalance` and `--balance key=value` of `node` and `up`: how executors are placed by what is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.values import assignments
from penstock.errors import UsageError

if TYPE_CHECKING:
    from penstock.settings import Balancing

Rebalance = Annotated[
    bool,
    typer.Option(help="Whether whoever leads moves executors by itself when that pays. The same for all nodes."),
]
Balance = Annotated[
    list[str] | None,
    typer.Option(
        "--balance",
        metavar="KEY=VALUE",
        help="How executors are placed by what is measured: strategy, threshold, interval … (docs/placement.md)."
        " Repeatable; the same for all nodes.",
    ),
]


def balancing(texts: list[str] | None) -> Balancing:
    """The settings. Raises `UsageError` that names the setting which is unknown or makes no sense."""
    import msgspec

    from penstock.settings import Balancing

    if not texts:
        return Balancing()
    values = assignments(texts, "--balance")
    for name in values:
        if name not in Balancing.__struct_fields__:
            known = ", ".join(Balancing.__struct_fields__)
            raise UsageError(f"--balance knows no {name!r}", remedy=f"the settings are: {known}")
    try:
        settings = msgspec.convert(values, Balancing)
    except msgspec.ValidationError as error:
        raise UsageError(f"--balance: {error}", remedy="docs/placement.md says what each setting takes") from None
    from penstock.cluster.balancer import Balancer
    from penstock.cluster.splitter import policy_of

    Balancer(settings)
    policy_of(settings)
    return settings


def arguments(rebalance: bool, balance: list[str] | None) -> tuple[str, ...]:
    """The same options for another process."""
    return (
        "--rebalance" if rebalance else "--no-rebalance",
        *(part for text in balance or () for part in ("--balance", text)),
    )
