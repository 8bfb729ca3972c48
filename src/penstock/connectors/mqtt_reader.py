"""Reading MQTT messages: acknowledged when their effect is safe.

The offset is how many messages were read, for `retained` alone: MQTT cannot be asked for old messages. What was not
acknowledged is in the broker's session and comes again when the same client id connects. Back-pressure is the
protocol's own: the broker sends at most `in_flight` messages that are not acknowledged (Receive Maximum, MQTT 5
section 3.1.2.11.3). QoS 0 has no such bound, so there the network thread waits while the queue is full.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.connectors.bad_records import BadRecord, shortened, without_bad
from penstock.connectors.mqtt_session import CONNECT_SECONDS, connect, disconnect, make_client, refused, unreachable
from penstock.errors import ConnectorError
from penstock.flow.connector import ConnectorContext, Reader

if TYPE_CHECKING:
    from penstock.connectors.mqtt_topics import MqttTopics

SETTLE_SECONDS = 2.0

_decode_json = msgspec.json.Decoder().decode


@dataclass(slots=True)
class _Delivery:
    record: Any
    id: int
    session: int
    """Which session of the broker it belongs to; an acknowledgement to a later one would be a lie."""
    number: int = 0
    """Set when it is read: its place in the order of reading."""


class MqttReader(Reader):
    """One subscription."""

    def __init__(self, source: MqttTopics, topic: str, offset: Any | None, ctx: ConnectorContext) -> None:
        self._source, self._topic, self._ctx = source, topic, ctx
        self._queue: deque[_Delivery] = deque()
        self._room = threading.Condition()
        self._unsafe: deque[_Delivery] = deque()
        """Read and not yet acknowledged, oldest first."""
        self._held: set[int] = set()
        """Ids of the messages that we have and the broker would send again after a reconnect."""
        self._session = 0
        self._read = int(offset or 0)
        self._closed = self._acknowledged = False
        self._error: ConnectorError | None = None
        self._ever_connected = False
        self._lost_at: float | None = ctx.clock.monotonic()
        client_id = source.client_id or f"penstock-{ctx.flow}-{ctx.step}"
        self._client = make_client(source.broker, client_id, manual_ack=True)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        connect(
            self._client,
            source.broker,
            clean=source.qos == 0,
            session_seconds=source.session_seconds if source.qos else 0,
            in_flight=source.in_flight,
        )

    # ---- called in paho's thread ----------------------------------------------------------------------------------

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        from paho.mqtt.subscribeoptions import SubscribeOptions

        if reason.is_failure:
            self._fail(refused(self._source.broker, reason))
            return
        with self._room:
            if not flags.session_present:
                self._session += 1
                self._held.clear()
        self._ever_connected, self._lost_at = True, None
        if_new = SubscribeOptions(qos=self._source.qos, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        client.subscribe(self._topic, options=if_new)

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if self._lost_at is None:
            self._lost_at = self._ctx.clock.monotonic()
        self._ctx.wake()

    def _on_subscribe(self, client: Any, userdata: Any, mid: int, reasons: list[Any], properties: Any) -> None:
        for reason in reasons:
            if reason.is_failure:
                self._fail(
                    ConnectorError(
                        f"the MQTT broker {self._source.broker} refused the subscription to {self._topic!r}: {reason}",
                        remedy="check the topic filter and the user's rights",
                    )
                )

    def _fail(self, error: ConnectorError) -> None:
        self._error = error
        self._ctx.wake()

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        with self._room:
            if message.qos:
                if message.dup and message.mid in self._held:
                    return
                self._held.add(message.mid)
            while len(self._queue) >= self._source.in_flight and not self._closed:
                self._room.wait()
            self._queue.append(_Delivery(self._record(message), message.mid if message.qos else 0, self._session))
        self._ctx.wake()

    def _record(self, message: Any) -> Any:
        payload: bytes = message.payload
        try:
            if self._source.decode == "json":
                decoded: Any = _decode_json(payload)
            elif self._source.decode == "text":
                decoded = payload.decode("utf-8")
            else:
                decoded = payload
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return BadRecord(
                payload,
                ConnectorError(
                    f"a message on {message.topic!r} is not {self._source.decode}: {error}: {shortened(payload)}",
                    remedy='choose decode="text" or "bytes", or let the flow skip bad records (on_error="skip")',
                ),
            )
        return {"topic": message.topic, "payload": decoded} if self._source.with_topic else decoded

    # ---- called in the worker's loop ------------------------------------------------------------------------------

    def read(self, limit: int) -> list[Any]:
        """Messages that have arrived. Raises `ConnectorError` when the broker refuses us or stays away too long."""
        deliveries: list[_Delivery] = []
        with self._room:
            while self._queue and len(deliveries) < limit:
                delivery = self._queue.popleft()
                self._read += 1
                delivery.number = self._read
                deliveries.append(delivery)
            self._room.notify_all()
        if self._source.qos:
            self._unsafe.extend(deliveries)
        if not deliveries:
            self._check()
        return without_bad([delivery.record for delivery in deliveries], self._ctx)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        lost_at = self._lost_at
        if lost_at is None:
            return
        patience = self._source.patience if self._ever_connected else min(CONNECT_SECONDS, self._source.patience)
        if self._ctx.clock.monotonic() - lost_at > patience:
            raise unreachable(self._source.broker, patience)

    def next_at(self) -> float | None:
        """Without a connection: look now and then whether the patience is over. Otherwise `wake` says when."""
        now = self._ctx.clock.monotonic()
        if self._queue:
            return now
        return now + 0.25 if self._lost_at is not None or self._error is not None else None

    def offset(self) -> Any:
        """Messages read so far."""
        return self._read

    def retained(self, offset: Any) -> None:
        """Acknowledge the messages up to `offset`."""
        while self._unsafe and self._unsafe[0].number <= (offset or 0):
            delivery = self._unsafe.popleft()
            with self._room:
                current = delivery.session == self._session
                if current:
                    self._held.discard(delivery.id)
            if current and delivery.id:
                self._client.ack(delivery.id, 1)
                self._acknowledged = True

    def lag(self) -> int | None:
        """Messages received and not read."""
        return len(self._queue)

    def close(self) -> None:
        """Disconnect; the broker keeps what was not acknowledged."""
        with self._room:
            self._closed = True
            self._room.notify_all()
        if self._acknowledged and self._lost_at is None:
            self._settle()
        disconnect(self._client)

    def _settle(self) -> None:
        """Let the broker take in our last acknowledgements. It handles packets in order, so the answer to a request
        that changes nothing says so; without it, the next connection of this client id could overtake them."""
        answered = threading.Event()
        self._client.on_unsubscribe = lambda *_: answered.set()
        self._client.unsubscribe(f"penstock/settle/{id(self)}")
        answered.wait(SETTLE_SECONDS)
