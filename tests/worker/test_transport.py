"""Frames between workers over real sockets."""

import os
import time
from pathlib import Path

import pytest

from penstock.errors import WorkerError
from penstock.worker.transport import Transport


def wait_frame(transport: Transport, seconds: float) -> bytes | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        frame = transport.receive()
        if frame is not None:
            return frame
        transport.socket.poll(20)
    return None


def test_ipc_frames_arrive_in_order_and_the_socket_file_goes(tmp_path: Path) -> None:
    a, b = Transport(str(tmp_path)), Transport(str(tmp_path))
    for number in range(100):
        a.send(b.endpoint, b"%d" % number)
    assert [wait_frame(b, 5) for _ in range(100)] == [b"%d" % n for n in range(100)]
    a.close()
    b.close()
    assert os.listdir(tmp_path) == []


def test_tcp_takes_only_peers_whose_key_is_known(tmp_path: Path) -> None:
    server, friend, stranger = (Transport(str(tmp_path), "127.0.0.1") for _ in range(3))
    keys = {server.endpoint: server.server_key, friend.endpoint: friend.server_key}
    for transport in (server, friend):
        transport.know(keys)
    stranger.know({server.endpoint: server.server_key})
    stranger.send(server.endpoint, b"let me in")
    friend.send(server.endpoint, b"hello")
    assert wait_frame(server, 5) == b"hello"
    assert wait_frame(server, 0.3) is None
    for transport in (server, friend, stranger):
        transport.close()


def test_a_path_too_long_for_a_socket_is_explained(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with pytest.raises(WorkerError, match="shorter data directory"):
        Transport(str(deep))
