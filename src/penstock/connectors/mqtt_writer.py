"""Publishing records, with a bounded number of messages that the broker has not confirmed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from penstock.connectors import json_lines
from penstock.connectors.mqtt_session import CONNECT_SECONDS, connect, disconnect, make_client, refused, unreachable
from penstock.errors import ConnectorError
from penstock.flow.connector import ConnectorContext, Writer

if TYPE_CHECKING:
    from penstock.connectors.mqtt_topics import MqttTopics


class MqttWriter(Writer):
    """One publisher. `flush` and `prepare` return when the broker has confirmed everything (QoS 1)."""

    def __init__(self, sink: MqttTopics, ctx: ConnectorContext) -> None:
        self._sink = sink
        self._changed = threading.Condition()
        self._open = self._done = 0
        """Messages published, and those of them that are on their way for good (confirmed, with QoS 1)."""
        self._connected = False
        self._error: ConnectorError | None = None
        client_id = f"{sink.client_id}-{ctx.index}" if sink.client_id else ""
        self._client = make_client(sink.broker, client_id, manual_ack=False)
        self._client.max_inflight_messages_set(min(sink.in_flight, 1000))
        self._client.on_connect = self._on_connect
        self._client.on_publish = self._on_publish
        connect(self._client, sink.broker, clean=True, session_seconds=0, in_flight=100)
        try:
            self._await(lambda: self._connected, min(CONNECT_SECONDS, sink.patience))
        except BaseException:
            self.abort()
            raise

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        with self._changed:
            if reason.is_failure:
                self._error = refused(self._sink.broker, reason)
            self._connected = True
            self._changed.notify_all()

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        with self._changed:
            if reason.is_failure:
                self._error = ConnectorError(
                    f"the MQTT broker {self._sink.broker} refused a message: {reason}",
                    remedy="check the topic and the user's rights",
                )
            self._done += 1
            self._changed.notify_all()

    def _await(self, condition: Any, seconds: float) -> None:
        with self._changed:
            reached = self._changed.wait_for(lambda: condition() or self._error is not None, seconds)
            if self._error is not None:
                raise self._error
        if not reached:
            raise unreachable(self._sink.broker, seconds)

    def write(self, records: list[Any]) -> None:
        """Publish records; waits while too many are not confirmed. Raises `ConnectorError`."""
        topic = self._sink.topic
        for record in records:
            if self._open - self._done >= self._sink.in_flight:
                self._await(lambda: self._open - self._done < self._sink.in_flight, self._sink.patience)
            payload = record if isinstance(record, (str, bytes)) else json_lines.encode(record)
            name = topic if isinstance(topic, str) else topic(record)
            self._open += 1
            try:
                self._client.publish(name, payload, qos=self._sink.qos)
            except ValueError as error:
                raise ConnectorError(f"nothing can be published to {name!r}: {error}") from error

    def flush(self) -> None:
        """Wait until the broker has everything."""
        if self._open > self._done or self._error is not None:
            self._await(lambda: self._done >= self._open, self._sink.patience)

    def close(self) -> None:
        """Wait until the broker has everything, and disconnect."""
        try:
            self.flush()
        finally:
            self.abort()

    def abort(self) -> None:
        """Disconnect."""
        disconnect(self._client)
