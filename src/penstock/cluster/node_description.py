"""What a lease tells of its node."""

from __future__ import annotations

import os
import platform
import socket
from importlib import metadata

import psutil


def describe_node(address: str, role: str, slots: int, checkpoints: str) -> dict[str, str | int | float]:
    """`checkpoints` marks where it keeps durable checkpoints: nodes must not differ in that."""
    return {
        "address": address,
        "role": role,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cpus": os.cpu_count() or 1,
        "memory": psutil.virtual_memory().total,
        "slots": slots,
        "checkpoints": checkpoints,
        "version": _version(),
        "python": platform.python_version(),
    }


def _version() -> str:
    try:
        return metadata.version("penstock")
    except metadata.PackageNotFoundError:
        return "unknown"
