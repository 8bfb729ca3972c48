"""The `penstock` command: one noun per file, registered here."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from penstock.cli import (
    events,
    model,
    move,
    node,
    nodes,
    operations,
    placement,
    push,
    rebalance,
    run,
    split,
    state,
    top,
    up,
)
from penstock.cli.demo import demo
from penstock.cli.output import exit_code, print_error
from penstock.cli.standard_streams import open_standard_streams
from penstock.errors import PenstockError


class Commands(TyperGroup):
    """The root of all commands: it turns an error into a paragraph and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PenstockError as error:
            print_error(error)
            raise typer.Exit(exit_code(error)) from None
        except BrokenPipeError:  # the reader of our output went away; that is its right
            _forget_stdout()
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except OSError as error:
            print_error(error)
            if not _can_flush():
                _forget_stdout()
            raise typer.Exit(1) from None


def _can_flush() -> bool:
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        return False
    return True


def _forget_stdout() -> None:
    """Keep the interpreter from failing again when it flushes standard output at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


app = typer.Typer(
    name="penstock",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"penstock {version('penstock')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep many small stream computations running on a cluster."""


HERE, CLUSTER = "On this machine", "In a cluster"

app.command(rich_help_panel=HERE)(run.run)
app.command(rich_help_panel=HERE)(demo)
app.command(rich_help_panel=HERE)(up.up)
app.command(rich_help_panel=HERE)(node.node)
app.add_typer(model.app, name="model", rich_help_panel=CLUSTER)
app.command(rich_help_panel=CLUSTER)(operations.operations)
app.command(rich_help_panel=CLUSTER)(push.push)
app.command(rich_help_panel=CLUSTER)(state.state)
app.command(rich_help_panel=CLUSTER)(placement.placement)
app.command(rich_help_panel=CLUSTER)(rebalance.rebalance)
app.command(rich_help_panel=CLUSTER)(move.move)
app.command(rich_help_panel=CLUSTER)(split.split)
app.command(rich_help_panel=CLUSTER)(nodes.nodes)
app.command(rich_help_panel=CLUSTER)(top.top)
app.command(rich_help_panel=CLUSTER)(events.events)


def main() -> None:
    """The console script."""
    open_standard_streams()
    app(prog_name="penstock")
