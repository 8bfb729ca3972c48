"""A peer's own environment: bench/.envs/NAME from bench/peers/NAME.txt, made by uv, never the project's.

The requirement file's comments say what else the peer needs: `# python: >=3.10,<3.13` and `# needs: java`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ENVIRONMENTS = HERE / ".envs"
INSTALL_TIMEOUT = 600.0
"""Seconds that an installation may take."""


class Unavailable(Exception):
    """A peer cannot take part; the text says why."""


def _comment(requirements: str, name: str) -> str | None:
    found = re.search(rf"^# {name}: *(.+)$", requirements, re.MULTILINE)
    return found.group(1).strip() if found else None


def _uv(*arguments: str) -> str:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise Unavailable("uv is not installed")
    environ = {"UV_SYSTEM_CERTS": "true", **os.environ}
    try:
        done = subprocess.run(
            [uv, *arguments], capture_output=True, text=True, timeout=INSTALL_TIMEOUT, check=False, env=environ
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"`uv {' '.join(arguments)}` took too long") from None
    if done.returncode:
        last = (done.stderr.strip() or "no output").splitlines()
        raise Unavailable(f"`uv {arguments[0]}` failed: {next((line for line in last if 'error' in line), last[-1])}")
    return done.stdout.strip()


def python_of(peer: str, *, install: bool = True) -> Path:
    """The interpreter of a peer's environment, which is made or brought up to date first. Raises `Unavailable`."""
    requirements = (HERE / "peers" / f"{peer}.txt").read_text()
    if _comment(requirements, "needs") == "java" and shutil.which("java") is None:
        raise Unavailable("no Java found")
    environment = ENVIRONMENTS / peer
    python, stamp = environment / "bin" / "python", environment / ".made-from"
    if python.exists() and stamp.exists() and stamp.read_text() == requirements:
        return python
    if not install:
        raise Unavailable("not installed (and --no-install was given)")
    print(f"preparing bench/.envs/{peer} …", file=sys.stderr, flush=True)
    interpreter = _uv("python", "find", "--no-project", _comment(requirements, "python") or ">=3.11")
    _uv("venv", "--quiet", "--clear", "--python", interpreter, str(environment))
    _uv("pip", "install", "--quiet", "--python", str(python), "-r", str(HERE / "peers" / f"{peer}.txt"))
    stamp.write_text(requirements)
    return python


def version_of(peer: str) -> str:
    """What a peer's requirement file pins."""
    lines = (HERE / "peers" / f"{peer}.txt").read_text().splitlines()
    return next(line for line in lines if line and not line.startswith("#"))
