"""Writing rows: with checkpoints, rows and position in one transaction, so that a kill neither loses nor doubles one.

The rows of an epoch (the time between two checkpoints) stay in memory and travel in `prepare`'s value, so they are
part of the durable checkpoint. `commit` opens one transaction, locks this executor's row of `penstock_positions`,
inserts the epochs later than the position found there, and moves the position. Doing it twice does nothing; losing the
connection while it commits is harmless for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from penstock import codec
from penstock.connectors.sql_engine import Database
from penstock.connectors.sql_rows import RowShape, row_of, table_for
from penstock.errors import ConnectorError
from penstock.flow.connector import ConnectorContext, Writer

if TYPE_CHECKING:
    from penstock.connectors.sql_database import SqlTable

FLUSH_ROWS = 2000

_metadata = sa.MetaData()
positions = sa.Table(
    "penstock_positions",
    _metadata,
    sa.Column("flow", sa.String(190), primary_key=True),
    sa.Column("step", sa.String(190), primary_key=True),
    sa.Column("executor", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("checkpoint", sa.BigInteger, nullable=False),
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
    mysql_charset="utf8mb4",
    mariadb_charset="utf8mb4",
    mysql_collate="utf8mb4_bin",
    mariadb_collate="utf8mb4_bin",
)


class SqlWriter(Writer):
    """One executor's end of a table."""

    transactional: ClassVar[bool] = True

    def __init__(self, sink: SqlTable, ctx: ConnectorContext) -> None:
        if sink.table is None:
            raise ConnectorError("a query cannot be written to", remedy='name a table: sql(url, "results")')
        self._sink, self._ctx, self._name = sink, ctx, sink.table
        self._database = Database(sink.url, sink.deadline)
        self._shape: RowShape | None = None
        self._rows: list[dict[str, Any]] = []
        self._epochs: list[tuple[int, bytes]] = []
        """(checkpoint, encoded rows) prepared and not yet committed."""
        self._last = 0
        self._clean = False
        try:
            self._database.transaction(lambda connection: connection.execute(sa.select(1)))
        except BaseException:
            self._database.close()
            raise

    # ---- records --------------------------------------------------------------------------------------------------

    def write(self, records: list[Any]) -> None:
        """Take records; without checkpoints they are inserted when enough have gathered."""
        self._start()
        rows = list(map(row_of, records))
        if self._shape is None:
            self._shape = self._open_table(rows)
        self._rows += map(self._shape.fitted, rows)
        if not self._ctx.checkpointed and len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Without checkpoints: insert what has gathered."""
        if self._ctx.checkpointed or not self._rows:
            return
        rows = self._rows
        self._database.transaction(lambda connection: self._insert(connection, rows))
        self._rows = []

    def _open_table(self, rows: list[dict[str, Any]]) -> RowShape:
        """The table as it is, made from the rows when it is missing."""
        database = self._database
        if not self._exists():
            table = table_for(self._name, rows, self._sink.key)
            try:
                database.transaction(lambda connection: table.create(connection, checkfirst=True))
            except ConnectorError:
                if not self._exists():  # another executor may have been faster
                    raise
        table = database.transaction(
            lambda connection: sa.Table(self._name, sa.MetaData(), autoload_with=connection, resolve_fks=False)
        )
        if self._sink.mode == "upsert":
            self._check_key(table)
        return RowShape(table, database.dialect)

    def _exists(self) -> bool:
        return self._database.transaction(lambda connection: sa.inspect(connection).has_table(self._name))

    def _check_key(self, table: sa.Table) -> None:
        """An upsert needs the database to know that the key is unique."""
        key = set(self._sink.key)
        unique = [{column.name for column in table.primary_key}]
        unique += [{c.name for c in index.columns} for index in table.indexes if index.unique]
        unique += [{c.name for c in k.columns} for k in table.constraints if isinstance(k, sa.UniqueConstraint)]
        if key not in unique:
            raise ConnectorError(
                f"table {self._name!r} has no primary key or unique index over exactly {sorted(key)}",
                remedy="make one, or write with mode='append'",
            )

    def _insert(self, connection: sa.Connection, rows: list[dict[str, Any]]) -> None:
        """Insert or upsert; the rows of one statement set the same columns."""
        assert self._shape is not None
        table, key = self._shape.table, self._sink.key
        if self._sink.mode == "upsert":
            rows = list({tuple(row.get(column) for column in key): row for row in rows}.values())
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in rows:
            groups.setdefault(tuple(row), []).append(row)
        for columns, group in groups.items():
            connection.execute(self._statement(table, columns), group)

    def _statement(self, table: sa.Table, columns: tuple[str, ...]) -> Any:
        if self._sink.mode == "append":
            return sa.insert(table)
        key = self._sink.key
        rest = [column for column in columns if column not in key]
        if self._database.dialect in ("mysql", "mariadb"):
            insert = mysql.insert(table)
            return insert.on_duplicate_key_update({c: insert.inserted[c] for c in rest or key})
        make: Any = postgresql.insert if self._database.dialect == "postgresql" else sqlite.insert
        statement = make(table)
        if not rest:
            return statement.on_conflict_do_nothing(index_elements=list(key))
        return statement.on_conflict_do_update(
            index_elements=list(key), set_={column: statement.excluded[column] for column in rest}
        )

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def prepare(self, checkpoint: int) -> Any:
        """The rows since the last checkpoint, with those of checkpoints that no commit has reached."""
        if not self._ctx.checkpointed:
            self.flush()
            return None
        self._start()
        self._keep(checkpoint)
        return {"executor": self._ctx.index, "checkpoint": checkpoint, "epochs": list(self._epochs)}

    def _keep(self, checkpoint: int) -> None:
        self._last = checkpoint
        if self._rows:
            self._epochs.append((checkpoint, codec.dumps(self._rows)))
            self._rows = []

    def commit(self, pending: Any) -> None:
        """Insert the epochs that are later than the position, and move the position, in one transaction."""
        if pending is None:
            return
        if pending["epochs"]:
            self._commit(pending["executor"], pending["checkpoint"], pending["epochs"])
        self._epochs = [epoch for epoch in self._epochs if epoch[0] > pending["checkpoint"]]

    def _commit(self, executor: int, checkpoint: int, epochs: Sequence[tuple[int, bytes]]) -> None:
        decoded = [(number, codec.loads(data)) for number, data in epochs]
        if self._shape is None:
            self._shape = self._open_table([row for _, rows in decoded for row in rows])

        def work(connection: sa.Connection) -> None:
            position = self._lock_position(connection, executor)
            rows = [row for number, epoch in decoded if number > position for row in epoch]
            if rows:
                self._insert(connection, rows)
            if checkpoint > position:
                connection.execute(sa.update(positions).where(*self._mine(executor)).values(checkpoint=checkpoint))

        self._database.transaction(work)

    def _mine(self, executor: int) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            positions.c.flow == self._ctx.flow,
            positions.c.step == self._ctx.step,
            positions.c.executor == executor,
        )

    def _lock_position(self, connection: sa.Connection, executor: int) -> int:
        """The executor's position, locked until the transaction ends; an update locks on every database."""
        mine = self._mine(executor)
        touched = connection.execute(sa.update(positions).where(*mine).values(checkpoint=positions.c.checkpoint))
        found = connection.execute(sa.select(positions.c.checkpoint).where(*mine)).scalar()
        if found is None:
            row = {"flow": self._ctx.flow, "step": self._ctx.step, "executor": executor, "checkpoint": 0}
            connection.execute(sa.insert(positions).values(row))
            return 0
        del touched
        return int(found)

    def recover(self, pendings: Sequence[Any]) -> None:
        """Commit what the restored checkpoint holds; later epochs were never written."""
        self._make_positions()
        self._clean = True
        for pending in pendings:
            if pending is None:
                continue
            self._last = max(self._last, pending["checkpoint"])
            self.commit(pending)
            self._refuse_later(pending["executor"], pending["checkpoint"])

    def _refuse_later(self, executor: int, checkpoint: int) -> None:
        found = self._database.transaction(
            lambda connection: connection.execute(
                sa.select(positions.c.checkpoint).where(*self._mine(executor))
            ).scalar()
        )
        if found is not None and found > checkpoint and self._sink.mode == "append":
            raise ConnectorError(
                f"table {self._name!r} holds rows up to checkpoint {found}, but checkpoint {checkpoint} was restored: "
                "its rows would be written twice",
                remedy="restore the newer checkpoint, or write with key= so that rows are replaced",
            )

    def _start(self) -> None:
        """Once, before the first effect of a run that was not restored: forget the position of earlier runs."""
        if self._clean or not self._ctx.checkpointed:
            return
        self._clean = True
        self._make_positions()
        self._database.transaction(
            lambda connection: connection.execute(sa.delete(positions).where(*self._mine(self._ctx.index)))
        )

    def _make_positions(self) -> None:
        def exists(connection: sa.Connection) -> bool:
            return sa.inspect(connection).has_table(positions.name)

        if self._database.transaction(exists):
            return
        try:
            self._database.transaction(lambda connection: positions.create(connection, checkfirst=True))
        except ConnectorError:
            if not self._database.transaction(exists):  # another executor may have been faster
                raise

    # ---- the end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Insert everything that is left and close the connections."""
        try:
            self.flush()
            if self._ctx.checkpointed and (self._rows or self._epochs):
                self._keep(self._last + 1)
                self.commit(self._pending_now())
        finally:
            self._database.close()

    def _pending_now(self) -> dict[str, Any]:
        return {"executor": self._ctx.index, "checkpoint": self._last, "epochs": list(self._epochs)}

    def abort(self) -> None:
        """Forget what is not committed and close the connections."""
        self._rows = []
        self._database.close()
