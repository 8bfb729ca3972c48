"""One connection to an MQTT 5 broker, shared by the source and the sink of `mqtt`."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from penstock.errors import ConnectorError, UsageError

CONNECT_SECONDS = 10.0
KEEPALIVE_SECONDS = 30


@dataclass(frozen=True)
class Broker:
    """Where a broker is, parsed from `mqtt://user:password@host:port` (`mqtts://` for TLS)."""

    host: str
    port: int
    user: str | None
    password: str | None = field(repr=False)
    tls: bool

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_broker(url: str) -> Broker:
    """The broker that a URL names. Raises `UsageError`."""
    parts = urlsplit(url if "://" in url else f"mqtt://{url}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == -1:
        raise UsageError(f"mqtt: {url!r} is not a broker's URL", remedy="for example mqtt://127.0.0.1:1883")
    tls = parts.scheme == "mqtts"
    return Broker(
        parts.hostname,
        port or (8883 if tls else 1883),
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password else None,
        tls,
    )


def make_client(broker: Broker, client_id: str, *, manual_ack: bool) -> Any:
    """A paho client that is not connected yet. Raises `ConnectorError` when paho-mqtt is not installed."""
    try:
        from paho.mqtt.client import Client, MQTTv5
        from paho.mqtt.enums import CallbackAPIVersion
    except ModuleNotFoundError as error:
        raise ConnectorError("mqtt needs paho-mqtt", remedy="pip install 'penstock[mqtt]'") from error
    client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTv5, manual_ack=manual_ack)
    if broker.user is not None:
        client.username_pw_set(broker.user, broker.password)
    if broker.tls:
        client.tls_set()
    client.reconnect_delay_set(1, 30)
    return client


def connect(client: Any, broker: Broker, *, clean: bool, session_seconds: int, in_flight: int) -> None:
    """Connect and stay connected in paho's own thread; returns at once."""
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.ReceiveMaximum = in_flight
    properties.SessionExpiryInterval = session_seconds
    client.connect_async(broker.host, broker.port, KEEPALIVE_SECONDS, clean_start=clean, properties=properties)
    client.loop_start()


def disconnect(client: Any) -> None:
    """Say good-bye, end paho's thread and close what it keeps open until it is collected."""
    client.disconnect()
    client.loop_stop()
    client._reset_sockets()


def refused(broker: Broker, reason: Any) -> ConnectorError:
    """The broker answered, and does not want us."""
    return ConnectorError(
        f"the MQTT broker {broker} refused the connection: {reason}",
        remedy="check user, password and client_id; the broker has to speak MQTT 5",
    )


def unreachable(broker: Broker, seconds: float) -> ConnectorError:
    """Nothing could be connected to for so long; says why a plain connection fails just now."""
    try:
        with socket.create_connection((broker.host, broker.port), timeout=1.0):
            why = "something listens there, but it does not answer as an MQTT 5 broker"
    except OSError as error:
        why = error.strerror or str(error)
    return ConnectorError(
        f"the MQTT broker {broker} could not be reached for {seconds:g} s: {why}",
        remedy="check that the broker runs and that host and port are right",
    )
