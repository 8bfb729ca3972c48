"""`mqtt`: messages of a broker's topics, read or published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from penstock.connectors.both_ways import SourceAndSink
from penstock.connectors.mqtt_session import Broker, parse_broker
from penstock.errors import UsageError
from penstock.flow.connector import ConnectorContext, Reader, Writer

Decode = Literal["json", "text", "bytes"]
Topic = str | Callable[[Any], str]


@dataclass(frozen=True)
class MqttTopics(SourceAndSink):
    """Made by `mqtt`."""

    url: str = field(repr=False)
    broker: Broker
    topic: Topic
    qos: int
    client_id: str | None
    decode: Decode
    with_topic: bool
    in_flight: int
    session_seconds: int
    patience: float
    bounded: bool = False
    replayable: bool = False

    def partitions(self) -> Sequence[str]:
        """One: the topic filter."""
        return [str(self.topic)]

    def reader(self, partition: str, offset: Any | None, ctx: ConnectorContext) -> Reader:
        """A subscription."""
        from penstock.connectors.mqtt_reader import MqttReader

        if not isinstance(self.topic, str):
            raise UsageError("mqtt: a source needs a topic filter, not a function")
        return MqttReader(self, self.topic, offset, ctx)

    def writer(self, ctx: ConnectorContext) -> Writer:
        """A publisher."""
        from penstock.connectors.mqtt_writer import MqttWriter

        return MqttWriter(self, ctx)

    def describe(self) -> str:
        """Broker and topic."""
        return f"mqtt {self.topic} at {self.broker}"


def mqtt(
    url: str,
    topic: Topic,
    *,
    qos: int = 1,
    client_id: str | None = None,
    decode: Decode = "json",
    with_topic: bool = False,
    in_flight: int = 10_000,
    session_seconds: int = 7 * 86_400,
    patience: float = 60.0,
) -> MqttTopics:
    """Messages of an MQTT 5 broker at `mqtt://user:password@host:port` (`mqtts://` for TLS).

    As a source: the messages of a topic filter (`sensors/+/temperature`), their payload decoded as `"json"`, `"text"`
    or left as `"bytes"`; `with_topic=True` gives `{"topic": …, "payload": …}`. With QoS 1 a message is acknowledged
    when its effect is safe, and the session is kept by the broker for `session_seconds` after a disconnect, so that
    nothing is lost while the flow is down, but a message may come twice (at least once). `in_flight` bounds the
    unacknowledged messages and so the memory; above it the broker waits. `client_id` names the session: by default
    flow and step.

    As a sink: publishes records to `topic`, or to the topic that `topic(record)` returns; text and bytes as they are,
    anything else as JSON. At least once.

    A lost connection is taken up again; after `patience` seconds without one the flow fails with `ConnectorError`.
    Raises `UsageError` for impossible options.
    """
    if qos not in (0, 1):
        raise UsageError(f"mqtt: qos={qos}: 0 or 1 was expected", remedy="with QoS 1 no message is lost")
    if decode not in ("json", "text", "bytes"):
        raise UsageError(f"mqtt: decode={decode!r}: 'json', 'text' or 'bytes' was expected")
    if not callable(topic) and not (isinstance(topic, str) and topic):
        raise UsageError(f"mqtt: a topic was expected, not {topic!r}")
    if not 1 <= in_flight <= 65_535:
        raise UsageError(f"mqtt: in_flight={in_flight}: 1 to 65535 messages were expected")
    if patience <= 0 or session_seconds < 0:
        raise UsageError("mqtt: patience must be greater than 0 s and session_seconds not negative")
    return MqttTopics(
        url, parse_broker(url), topic, qos, client_id, decode, with_topic, in_flight, session_seconds, patience
    )
