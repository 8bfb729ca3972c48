"""Reading rows in a thread of its own: one query, or with `follow` one after another."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import exc

from penstock.connectors.inbox import Inbox
from penstock.connectors.retries import waits
from penstock.connectors.sql_engine import Database, worth_retrying
from penstock.errors import ConnectorError
from penstock.flow.connector import ConnectorContext, EndOfInput, Reader

if TYPE_CHECKING:
    from penstock.connectors.sql_database import SqlTable

PAGE_ROWS = 1000
WAITING_ROWS = 4 * PAGE_ROWS


class SqlReader(Reader):
    """Rows as dictionaries. The offset is `{"last": value of the incremental column, "rows": n}`: n rows in all
    without such a column, else n rows with that value, so that rows with equal values are not lost."""

    def __init__(self, source: SqlTable, offset: Any | None, ctx: ConnectorContext) -> None:
        self._source = source
        self._database = Database(source.url, source.deadline)
        self._last: Any = offset["last"] if offset else None
        self._rows: int = offset["rows"] if offset else 0
        self._inbox = Inbox(WAITING_ROWS, ctx.wake)
        self._inbox.start(self._feed, f"penstock-sql-{ctx.step}")

    def _feed(self, inbox: Inbox) -> None:
        """The thread: read to the end, and again if the table is followed."""
        last, rows = self._last, self._rows
        while True:
            last, rows = self._read_through(inbox, last, rows)
            if self._source.bounded:
                return
            inbox.pause(self._source.poll)

    def _read_through(self, inbox: Inbox, last: Any, rows: int) -> tuple[Any, int]:
        """One pass to the end of the table; a lost connection continues after the last row that was handed over."""
        failure: exc.DBAPIError | None = None
        for _ in waits(self._source.deadline, sleep=inbox.pause):
            try:
                for page in self._pages(last, rows):
                    inbox.put(page)
                    last, rows = self._moved(page, last, rows)
            except exc.DBAPIError as error:
                if not worth_retrying(error):
                    raise self._database.failed(error) from error
                failure = error
            except exc.SQLAlchemyError as error:
                raise self._database.failed(error) from error
            else:
                return last, rows
        assert failure is not None
        raise ConnectorError(
            f"{self._database.where} could not be read for {self._source.deadline:g} s: {failure.orig}",
            remedy="check that the database is up and reachable",
        ) from failure

    def _pages(self, last: Any, rows: int) -> Iterator[list[dict[str, Any]]]:
        with self._database.engine.connect() as connection:
            result = connection.execution_options(stream_results=True, max_row_buffer=PAGE_ROWS).execute(
                self._query(last)
            )
            with result:
                names = list(result.keys())
                if self._source.incremental is not None and self._source.incremental not in names:
                    raise ConnectorError(
                        f"the rows have no column {self._source.incremental!r}; they have {names}",
                        remedy="name one of these in incremental=",
                    )
                found = islice(result, rows, None)
                while page := [dict(zip(names, row, strict=True)) for row in islice(found, PAGE_ROWS)]:
                    yield page

    def _query(self, last: Any) -> sa.Executable:
        source = self._source
        origin: Any = sa.table(source.table) if source.table else sa.text(f"({source.query}) AS penstock_query")
        if source.incremental is None:
            return sa.select(sa.text("*")).select_from(origin)
        column: sa.ColumnElement[Any] = sa.column(source.incremental)
        query = sa.select(sa.text("*")).select_from(origin).order_by(column)
        return query if last is None else query.where(column >= last)

    def _moved(self, page: list[dict[str, Any]], last: Any, rows: int) -> tuple[Any, int]:
        """The position after a page."""
        column = self._source.incremental
        if column is None:
            return None, rows + len(page)
        final = page[-1][column]
        equal = 0
        for row in reversed(page):
            if row[column] != final:
                return final, equal
            equal += 1
        return final, equal + (rows if final == last else 0)

    def read(self, limit: int) -> list[Any]:
        """Rows that have arrived. Raises `ConnectorError` and `EndOfInput`."""
        ended = self._inbox.exhausted
        batch = self._inbox.take(limit)
        if batch:
            self._last, self._rows = self._moved(batch, self._last, self._rows)
        elif ended:
            raise EndOfInput
        return batch

    def offset(self) -> Any:
        """The position after the last row returned."""
        return {"last": self._last, "rows": self._rows}

    def close(self) -> None:
        """End the thread and close the connection."""
        self._inbox.close()
        self._database.close()
