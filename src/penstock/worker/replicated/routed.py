"""Where results leave for a keyed stage whose executors may change: as `EdgeOutlet`, by a routing table."""

from __future__ import annotations

from typing import Any

from penstock.exchange.frame import Kind
from penstock.exchange.keys import Router
from penstock.exchange.split.instructions import Route
from penstock.exchange.split.producer import Producer
from penstock.flow.batch import MIN_TIME, Batch, Columns
from penstock.flow.event_time import Tracker
from penstock.flow.graph import EdgeShape
from penstock.worker.channels import Part, naming_edge
from penstock.worker.payload import COLUMNS, encode_columns, encode_rows
from penstock.worker.replicated.outputs import Gatherer


class RoutedOutlet:
    """One edge of the plan. `producer` is the machine of the stage that it leads to; `gatherers`: executor -> the
    channel to it."""

    def __init__(self, edge: EdgeShape, gatherers: dict[int, Gatherer], producer: Producer, index: int) -> None:
        self.edge, self.gatherers = edge, gatherers
        self.watermark = MIN_TIME
        self.turn = index
        """Counts the batches without keys."""
        self._producer = producer
        self._tracker = Tracker()
        self.route(producer.route())

    def route(self, route: Route) -> None:
        """Split by another table from now on."""
        self._router = Router(route.slots, route.table)
        self._held = route.held

    def send(self, batch: Batch) -> None:
        """Route a batch by key; an unkeyed one goes to the consumers in turn."""
        self._tell(self._tracker.wake(0, batch.lane))
        if isinstance(batch, Columns):
            self._send_columns(batch)
            return
        values = batch.values if self.edge.needs_values else None
        if batch.keys is None:
            self._next().gather(Part(values, None, batch.times), batch.origin)
            return
        with naming_edge(self.edge):
            parts = self._router.split(batch.keys, values, batch.times)
        for executor, keys, own, times in parts:
            if executor == self._held:
                with naming_edge(self.edge):
                    payload = encode_rows(own, keys, times)
                self._hold(payload, len(keys), batch.origin, 0)
            else:
                self.gatherers[executor].gather(Part(own, keys, times), batch.origin)

    def _send_columns(self, batch: Columns) -> None:
        if batch.key is None:
            self._next().send_columns(batch)
            return
        keys = batch.frame[batch.key].to_list()
        with naming_edge(self.edge):
            parts = self._router.split(keys, list(range(len(keys))), None)
        for executor, _, chosen, _ in parts:
            part = Columns(batch.frame[chosen], batch.key, batch.time, batch.lane, batch.origin)
            if executor == self._held:
                with naming_edge(self.edge):
                    payload = encode_columns(part)
                self._hold(payload, len(part), batch.origin, COLUMNS)
            else:
                self.gatherers[executor].send_columns(part)

    def _hold(self, payload: bytes, records: int, origin: int, flags: int) -> None:
        self._producer.hold(self.edge.id, [payload, records, origin, flags], len(payload))

    def release(self, executor: int, content: list[Any]) -> None:
        """Records that were held back go to their owner."""
        payload, records, origin, flags = content
        self.gatherers[executor].put(Kind.DATA, payload, records=records, origin=origin, flags=flags)

    def _next(self) -> Gatherer:
        self.turn += 1
        there = sorted(self.gatherers)
        return self.gatherers[there[self.turn % len(there)]]

    def advance(self, lane: int, watermark: int) -> None:
        """The edge's watermark is the least of its lanes; it travels with the next frame."""
        self._tell(self._tracker.update(0, lane, watermark))

    def _tell(self, watermark: int) -> None:
        if watermark != self.watermark:
            self.watermark = watermark
            untold = self._producer.watermark(self.edge.id, watermark)
            for executor, gatherer in self.gatherers.items():
                if executor not in untold:
                    gatherer.watermark = watermark
