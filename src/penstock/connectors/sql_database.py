"""`sql`: rows of a database table, read or written, through SQLAlchemy (SQLite, MariaDB/MySQL, PostgreSQL)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from penstock.connectors.both_ways import SourceAndSink
from penstock.errors import UsageError
from penstock.flow.connector import ConnectorContext, Reader, Writer

Mode = Literal["append", "upsert"]


@dataclass(frozen=True)
class SqlTable(SourceAndSink):
    """Made by `sql`."""

    url: str = field(repr=False)
    table: str | None
    query: str | None
    key: tuple[str, ...]
    mode: Mode
    incremental: str | None
    poll: float
    deadline: float
    bounded: bool = True

    def partitions(self) -> Sequence[str]:
        """One: the table or query."""
        return [self.table or "query"]

    def reader(self, partition: str, offset: Any | None, ctx: ConnectorContext) -> Reader:
        """Rows as dictionaries."""
        from penstock.connectors.sql_reader import SqlReader

        return SqlReader(self, offset, ctx)

    def writer(self, ctx: ConnectorContext) -> Writer:
        """Records as rows."""
        from penstock.connectors.sql_writer import SqlWriter

        return SqlWriter(self, ctx)

    def describe(self) -> str:
        """The table, without the password."""
        from penstock.connectors.sql_engine import shown

        return f"sql {self.table or self.query} at {shown(self.url)}"


def sql(
    url: str,
    table: str | None = None,
    *,
    key: str | Sequence[str] = (),
    mode: Mode | None = None,
    query: str | None = None,
    incremental: str | None = None,
    follow: bool = False,
    poll: float = 1.0,
    deadline: float = 30.0,
) -> SqlTable:
    """A database table. `url` is SQLAlchemy's: `sqlite:///out.db`, `mariadb://user@host/db`, `postgresql://…`.

    As a sink: dictionaries, Structs and dataclasses become rows; `Keyed` a row with the column `key` besides those of
    its value (or `value`). A missing table is made from the first records. `key` names the columns that identify a row;
    with it the mode is `upsert` (a later record replaces the row), without it `append`. With checkpoints rows and
    position are committed in one transaction: each row once.

    As a source: the rows of `table`, or of `query`, as dictionaries. `incremental` names a column that grows with
    every row (an id): rows come in its order, a restart continues after the last one, and `follow=True` looks for new
    ones every `poll` seconds. Without it a restart counts rows, which needs a query with a fixed order.

    `deadline` is how many seconds a lost connection is tried again. Raises `UsageError` for impossible options.
    """
    columns = (key,) if isinstance(key, str) else tuple(key)
    if "://" not in url:
        raise UsageError(f"sql: {url!r} is not a database URL", remedy="for example sqlite:///out.db")
    if (table is None) == (query is None):
        raise UsageError("sql: either a table or query=… is needed", remedy='for example sql(url, "results")')
    if mode == "upsert" and not columns:
        raise UsageError("sql: mode='upsert' needs key=", remedy='for example key="sensor"')
    if mode not in (None, "append", "upsert"):
        raise UsageError(f"sql: mode={mode!r}: 'append' or 'upsert' was expected")
    if follow and incremental is None:
        raise UsageError("sql: follow=True needs incremental=", remedy='name a column that grows: incremental="id"')
    if poll <= 0 or deadline <= 0:
        raise UsageError(f"sql: poll={poll} and deadline={deadline} must be seconds greater than 0")
    chosen: Mode = mode or ("upsert" if columns else "append")
    return SqlTable(url, table, query, columns, chosen, incremental, poll, deadline, not follow)
