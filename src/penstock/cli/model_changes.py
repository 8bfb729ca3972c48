"""The commands of `penstock model` that change something on every node, and what they say meanwhile."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from penstock.cli.connection import DEFAULT_URL, Token, Url, call
from penstock.cli.output import Json, console, error_console, print_error, print_json, size, table
from penstock.cli.values import Set, assignments
from penstock.errors import PenstockError, UsageError

if TYPE_CHECKING:
    from penstock.client import Client
    from penstock.client.changes import Options

T = TypeVar("T")

PLAN = "plan"
"""`penstock model plan CHANGE …` is `penstock model CHANGE … --dry-run`."""

Name = Annotated[str, typer.Argument(help="NAME or GROUP/NAME.", show_default=False)]
Source = Annotated[
    str, typer.Argument(metavar="PATH[:OBJECT]", help="A file, a directory or a package.", show_default=False)
]
Bundle = Annotated[bool, typer.Option("--bundle", help="Carry what it requires inside the package.")]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", min=1, max=86_400, metavar="SECONDS", help="For the nodes to prepare; default: 60."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would happen.")]


class Recovery(StrEnum):
    """What becomes of a model's state when a worker dies."""

    NONE = "none"
    PASSIVE = "passive"
    ACTIVE = "active"


def add(
    ctx: typer.Context,
    source: Source,
    name: Annotated[str | None, typer.Option("--name", help="NAME or GROUP/NAME instead of the package's own.")] = None,
    settings: Set = None,
    online: Annotated[bool, typer.Option("--online", help="Bring it online at once.")] = False,
    bundle: Bundle = False,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Add a flow to the cluster: it is packed here, and every node gets it, or none."""
    change = Change(ctx, url, token, json, timeout, dry_run)
    config = assignments(settings)
    view = change.run(
        lambda client, options: client.add_model(source, name=name, config=config, bundle=bundle, **options)
    )
    if online and not change.dry_run:
        view = change.run(lambda client, options: client.online(view["name"], **options))
    change.tell(view, lambda: f"{view['name']} is {'online' if online else 'added'}")


def update(
    ctx: typer.Context,
    name: Name,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATH[:OBJECT]]", help="Its new package; without, the configuration alone.", show_default=False
        ),
    ] = None,
    settings: Set = None,
    live: Annotated[
        bool, typer.Option("--live", help="While it is online, its keyed state kept (recovery passive or active).")
    ] = False,
    bundle: Bundle = False,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Give a model another package, another configuration, or both."""
    given = assignments(settings)
    if source is None and not given:
        raise UsageError("there is nothing to update", remedy="name a PATH, or settings with --set KEY=VALUE")
    change = Change(ctx, url, token, json, timeout, dry_run)
    view = change.run(
        lambda client, options: client.update_model(
            name, source, config=_with(client, name, given), live=live, bundle=bundle, **options
        )
    )
    change.tell(view, lambda: f"{view['name']} is updated" + (f" to {view['version']}" if view["version"] else ""))


def rollback(
    ctx: typer.Context,
    name: Name,
    to: Annotated[
        int | None, typer.Option("--to", min=1, metavar="GENERATION", help="Default: the version before this one.")
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="While it is online. It also calls off a live update that is under way.")
    ] = False,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Bring back an earlier version; `penstock model versions` lists them."""
    change = Change(ctx, url, token, json, timeout, dry_run)
    view = change.run(lambda client, options: client.rollback(name, to, live=live, **options))
    change.tell(view, lambda: f"{view['name']} is back" + (f" at {view['version']}" if view["version"] else ""))


def delete(
    ctx: typer.Context,
    name: Name,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Delete a model that is offline from every node."""
    change = Change(ctx, url, token, json, timeout, dry_run)
    plan = change.run(lambda client, options: client.delete_model(name, **options))
    change.tell(plan or {"name": name, "deleted": True}, lambda: f"{name} is deleted")


def online(
    ctx: typer.Context,
    name: Name,
    executors: Annotated[
        int | None, typer.Option("--executors", "-e", min=1, max=256, help="Executors per stage.")
    ] = None,
    settings: Set = None,
    recovery: Annotated[
        Recovery | None,
        typer.Option(
            "--recovery",
            help="What becomes of its state when a worker dies: lost (none), taken over by a standby that keeps a "
            "copy (passive) or computes along (active).",
        ),
    ] = None,
    replication: Annotated[
        list[str] | None,
        typer.Option(
            "--replication",
            metavar="KEY=VALUE",
            help="How its standbys are kept up to date: checkpoint_interval (seconds), checkpoint_records, "
            "checkpoint_bytes, digest_every, handover_lag. Repeatable.",
        ),
    ] = None,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Bring a model online; returns when it runs. Keyed state starts empty."""
    given = assignments(settings)
    wanted = None if recovery is None else recovery.value
    kept = assignments(replication) or None
    change = Change(ctx, url, token, json, timeout, dry_run)
    view = change.run(
        lambda client, options: client.online(
            name, config=_with(client, name, given), executors=executors, recovery=wanted, replication=kept, **options
        )
    )
    change.tell(view, lambda: f"{view['name']} is {view['status']}{_unprotected(view)}")


def _unprotected(view: dict[str, Any]) -> str:
    """Whose state a crash would cost, although it was asked for that it does not."""
    bare = [executor["id"] for executor in view["executors"] if executor["degraded"]]
    return f": no standby could take over for {', '.join(bare)} yet (that takes a second node)" if bare else ""


def offline(
    ctx: typer.Context,
    name: Name,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    json: Json = False,
) -> None:
    """Take a model offline; returns when it has stopped."""
    change = Change(ctx, url, token, json, timeout, dry_run)
    view = change.run(lambda client, options: client.offline(name, **options))
    change.tell(view, lambda: f"{view['name']} is {view['status']}")


def ask(url: str, token: str | None, use: Callable[[Client], T]) -> T:
    """As `call`. Where there is no such model, the error names the model of that name in another group."""
    from penstock.client import NotFound

    def asked(client: Client) -> T:
        try:
            return use(client)
        except NotFound as error:
            missing = re.match(r"there is no model '(?:.*/)?([^/']+)'", error.detail)
            if missing is None:
                raise
            near = [view["name"] for view in client.models() if view["name"].rpartition("/")[2] == missing[1]]
            if not near:
                raise
            raise NotFound(
                error.first_line,
                status=error.status,
                problem=error.problem,
                remedy=f"did you mean {' or '.join(near)}?",
            ) from None

    return call(url, token, asked)


def _with(client: Client, name: str, given: dict[str, Any]) -> dict[str, Any] | None:
    """The model's configuration with the settings that were given; `None` when there are none."""
    if not given:
        return None
    present: dict[str, Any] = client.model(name)["config"]
    return present | given


CHANGES: tuple[Callable[..., None], ...] = (add, update, rollback, delete, online, offline)
"""The commands that `--dry-run` and `penstock model plan` apply to."""


def build(
    source: Source,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where to.")] = Path("."),
    name: Annotated[str | None, typer.Option("--name", help="Instead of the manifest's.")] = None,
    bundle: Bundle = False,
    json: Json = False,
) -> None:
    """Make a package (a wheel) of a flow, without a cluster."""
    from penstock.model.package import build, summary

    with progress("packing") as say:
        package = build(Path(source).expanduser(), out.expanduser(), name=name, bundle=bundle, progress=say)
    if json:
        print_json({"path": str(package.path)} | summary(package))
    else:
        console().print(str(package.path), markup=False)
        error_console().print(f"{size(package.size)}, sha256 {package.digest}", style="dim", markup=False)


@contextlib.contextmanager
def progress(text: str) -> Iterator[Callable[[str], None]]:
    """Inside, what is said stands beside a spinner, on a terminal alone."""
    from rich.markup import escape

    with error_console().status(text) as status:
        yield lambda said: status.update(escape(said))


class Change:
    """One change of the cluster's models: asks for it, says what is awaited, and tells its end."""

    def __init__(
        self, ctx: typer.Context, url: str, token: str | None, json: bool, timeout: float | None, dry_run: bool
    ) -> None:
        self.url, self.token, self.json, self.timeout = url, token, json, timeout
        self.dry_run = dry_run or (ctx.parent is not None and ctx.parent.info_name == PLAN)

    def run(self, use: Callable[[Client, Options], Any]) -> Any:
        """What `use(client, options)` returns. A change that was rolled back is told as JSON too, if wanted."""
        from penstock.client import RolledBack

        with progress("connecting") as say:
            options: Options = {"timeout": self.timeout, "dry_run": self.dry_run, "on_progress": say}
            try:
                return ask(self.url, self.token, lambda client: use(client, options))
            except RolledBack as error:
                if self.json:
                    print_json({"error": error.detail, "operation": error.operation, "nodes": error.nodes})
                raise
            except KeyboardInterrupt:
                error_console().print("detached; what was begun goes on by itself: `penstock operations` shows it")
                raise

    def tell(self, value: dict[str, Any], text: Callable[[], str]) -> None:
        """The end, or the plan. A plan that would be refused ends the command with 1."""
        if self.json:
            print_json(value)
        elif self.dry_run:
            _tell_plan(value)
        else:
            error_console().print(text(), markup=False)
        if self.dry_run and not value["possible"]:
            print_error(PenstockError(value["reason"] or "it would be refused", remedy=value["remedy"] or None))
            raise typer.Exit(1)


def _tell_plan(plan: dict[str, Any]) -> None:
    out = console()
    out.print(f"{plan['kind']} {plan['model']}" + ("" if plan["possible"] else ": not possible"), markup=False)
    for change in plan["changes"]:
        out.print(f"  {change}", markup=False)
    if plan["nodes"]:
        out.print(table(("node", "would"), plan["nodes"].items()))
