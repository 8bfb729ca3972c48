"""Frames between workers: one ZeroMQ PULL socket per worker, one PUSH socket per peer.

`ipc` sockets live in a directory with mode 0700. `tcp` sockets use CURVE: every worker has a key pair, and only the
public keys that the supervisor named may connect.
"""

from __future__ import annotations

import os
import uuid

import zmq
import zmq.auth.thread

from penstock.errors import WorkerError


class Transport:
    """All sockets of one worker. Memory is bounded by the channels' credits, so queues have no limit of their own."""

    def __init__(self, data_dir: str, bind: str | None = None) -> None:
        self._peers: dict[str, zmq.Socket[bytes]] = {}
        self._allowed: set[bytes] = set()
        self._keys: dict[str, str] = {}
        self._auth: zmq.auth.thread.ThreadAuthenticator | None = None
        self._path: str | None = None
        self.server_key = ""
        if bind is None:
            self._path = _socket_path(data_dir)
        self._context = zmq.Context()
        self._inbox = self._context.socket(zmq.PULL)
        self._inbox.set_hwm(0)
        try:
            if bind is None:
                self.endpoint = f"ipc://{self._path}"
                self._inbox.bind(self.endpoint)
            else:
                self._bind_tcp(bind)
        except zmq.ZMQError as error:
            self.close()
            raise WorkerError(f"no data socket on {bind or self._path}: {error}", remedy="check --bind") from error

    def _bind_tcp(self, bind: str) -> None:
        public, self._secret = zmq.curve_keypair()
        self._public = public
        self.server_key = public.decode()
        self._auth = zmq.auth.thread.ThreadAuthenticator(self._context)
        self._auth.start()
        self._auth.configure_curve_callback("*", credentials_provider=self)
        self._inbox.curve_server = True
        self._inbox.curve_publickey, self._inbox.curve_secretkey = public, self._secret
        host = f"[{bind}]" if ":" in bind else bind
        self._inbox.set(zmq.IPV6, int(":" in bind))
        port = self._inbox.bind_to_random_port(f"tcp://{host}")
        self.endpoint = f"tcp://{host}:{port}"

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a peer with this public key may connect (called by the authenticator's thread)."""
        return key in self._allowed

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """The inbox, for pollers."""
        return self._inbox

    def receive(self) -> bytes | None:
        """The next frame, if one has arrived."""
        try:
            return self._inbox.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def know(self, server_keys: dict[str, str]) -> None:
        """The public keys of the workers that may connect, by endpoint."""
        self._allowed = {key.encode() for key in server_keys.values() if key}
        self._keys = server_keys

    def send(self, endpoint: str, frame: bytes) -> None:
        """Queue a frame to a peer; never blocks."""
        peer = self._peers.get(endpoint)
        if peer is None:
            peer = self._peers[endpoint] = self._connect(endpoint)
        try:
            peer.send(frame, zmq.NOBLOCK)
        except zmq.Again:  # the connection was given up for good, as after a damaged handshake: make another
            self.drop(endpoint)
            peer = self._peers[endpoint] = self._connect(endpoint)
            peer.send(frame, zmq.NOBLOCK)

    def _connect(self, endpoint: str) -> zmq.Socket[bytes]:
        peer: zmq.Socket[bytes] = self._context.socket(zmq.PUSH)
        peer.set_hwm(0)
        peer.linger = 0
        if endpoint.startswith("tcp://"):
            peer.set(zmq.IPV6, int("[" in endpoint))
            if self._auth is not None:
                peer.curve_serverkey = self._keys[endpoint].encode()
                peer.curve_publickey, peer.curve_secretkey = self._public, self._secret
        peer.connect(endpoint)
        return peer

    def forget(self, endpoints: set[str]) -> None:
        """Close the sockets to all peers but these."""
        for endpoint in set(self._peers) - endpoints:
            self._peers.pop(endpoint).close(0)

    def drop(self, endpoint: str) -> None:
        """Close the socket to a peer; the next frame to it opens another."""
        peer = self._peers.pop(endpoint, None)
        if peer is not None:
            peer.close(0)

    def close(self) -> None:
        """Close everything; unsent frames are dropped."""
        self.forget(set())
        self._inbox.close(0)
        if self._auth is not None:
            self._auth.stop()
        self._context.destroy(0)
        if self._path is not None and os.path.exists(self._path):
            os.unlink(self._path)


def _socket_path(data_dir: str) -> str:
    path = os.path.join(data_dir, f"{uuid.uuid4().hex[:12]}.sock")
    if len(path.encode()) > 100:
        raise WorkerError(
            f"the socket path {path!r} is too long for this system",
            remedy="use a shorter data directory, e.g. under /tmp",
        )
    return path
