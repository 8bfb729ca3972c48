"""What an operator decides about the gateway, and the check that keeps an open port from being an open door."""

from __future__ import annotations

import ipaddress

import msgspec

from penstock.errors import UsageError


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the gateway listens and whom it lets in. Sizes in bytes, times in seconds."""

    host: str = "127.0.0.1"
    port: int = 8700
    token: str | None = None
    """Callers must send it as `Authorization: Bearer …`; needed on every address but the loopback."""
    tls_certificate: str | None = None
    """A PEM file with the certificate chain."""
    tls_key: str | None = None
    """A PEM file with its private key."""
    max_body: int = 64 * 2**20
    """A larger request body is refused with 413 while it arrives."""
    max_package: int = 512 * 2**20
    """A package may be so large; it is written to disk as it arrives."""
    max_push: int = 8 * 2**20
    """One push may bring so much; half of what a push source holds, so that every push can succeed one day."""
    patience: float = 30.0
    """An upload of a package in which nothing arrives for so long is given up (408)."""
    heartbeat: float = 15.0
    """An event stream that is silent for so long sends a comment."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """The address for people and clients."""
        scheme = "http" if self.tls_certificate is None else "https"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"

    def check(self) -> None:
        """Raises `UsageError` for an address that would let strangers in, or half a TLS configuration."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise UsageError("TLS needs both a certificate and a key", remedy="give both --tls-cert and --tls-key")
        if self.loopback:
            return
        missing = [name for name, given in (("token", self.token), ("TLS", self.tls_certificate)) if not given]
        if missing:
            raise UsageError(
                f"{self.host} can be reached from other machines, and there is no {' and no '.join(missing)}",
                remedy="give --token (or PENSTOCK_TOKEN) and --tls-cert/--tls-key, or bind 127.0.0.1",
            )


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an IP address) is this machine and nothing else."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
