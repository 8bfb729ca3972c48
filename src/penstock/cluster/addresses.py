"""Where the workers of a node are reached by those of others."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from penstock.errors import ClusterError

_LOOPBACK = ("localhost", "127.", "::1")


def data_address(address: str) -> str | None:
    """The IP address for data sockets; `None` (`ipc`) when other machines cannot reach this node anyway."""
    host = urlsplit(address).hostname or "localhost"
    if host.startswith(_LOOPBACK):
        return None
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ClusterError(
            f"the address of this node, {address!r}, cannot be resolved: {error.strerror}",
            remedy="give an IP address of this machine with --bind",
        ) from error
