"""Talking to a cluster from Python: `Client`, and its async twin `AsyncClient`."""

from penstock.client.drivers import AsyncClient, Client
from penstock.client.errors import (
    Busy,
    ClientError,
    Conflict,
    NotFound,
    Refused,
    Rejected,
    RolledBack,
    Unfinished,
    Unreachable,
)
from penstock.client.sending import PushResult

__all__ = [
    "AsyncClient",
    "Busy",
    "Client",
    "ClientError",
    "Conflict",
    "NotFound",
    "PushResult",
    "Refused",
    "Rejected",
    "RolledBack",
    "Unfinished",
    "Unreachable",
]
