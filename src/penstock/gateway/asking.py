"""How a change is asked for: the query and headers that every call which changes a model takes."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Depends, Header, Query

from penstock.cluster.service import Ask
from penstock.gateway.problems import Problem

LONGEST_KEY = 200
"""Characters of an idempotency key."""
LONGEST_USER = 100
"""Characters of a user's name."""
LONGEST_TIMEOUT = 86_400.0
"""Seconds that nodes may be given to prepare, or a caller may wait."""

_WAIT = re.compile(r'\s*wait\s*=\s*"?(\d{1,9})"?\s*', re.ASCII | re.IGNORECASE)
_AT_ONCE = re.compile(r"\s*respond-async\s*", re.IGNORECASE)


async def user(penstock_user: str | None = Header(None, description="Who asks, for the audit trail.")) -> str:
    """The name in `Penstock-User`; empty when there is none."""
    return _text("Penstock-User", penstock_user, LONGEST_USER)


async def asked(
    timeout: float | None = Query(
        None, gt=0, le=LONGEST_TIMEOUT, description="Seconds that the nodes have to prepare.", allow_inf_nan=False
    ),
    wait: float | None = Query(
        None,
        ge=0,
        le=LONGEST_TIMEOUT,
        description="Seconds after which a 202 tells what is known; default: the end is waited for.",
        allow_inf_nan=False,
    ),
    dry_run: bool = Query(False, description="Change nothing; answer what would happen (`ChangePlan`)."),
    idempotency_key: str | None = Header(None, description="A repeat with the same key gets the first answer."),
    penstock_user: str | None = Header(None, description="Who asks, for the audit trail."),
    prefer: str | None = Header(None, description="`wait=N` is the same as the query `wait` (RFC 7240)."),
) -> Ask:
    """The `Ask` of a request. A problem (422) names what cannot be taken."""
    return Ask(
        key=_text("Idempotency-Key", idempotency_key, LONGEST_KEY),
        user=await user(penstock_user),
        timeout=timeout,
        wait=_preferred(prefer) if wait is None else wait,
        dry_run=dry_run,
    )


User = Annotated[str, Depends(user)]
"""A parameter of a route that only says who asks."""
Asked = Annotated[Ask, Depends(asked)]
"""A parameter of a route that changes something."""


def _text(header: str, value: str | None, longest: int) -> str:
    """A header's value: UTF-8, printable, of bounded length."""
    if value is None:
        return ""
    try:
        text = value.encode("latin-1").decode()  # headers arrive as latin-1, whatever was sent
    except UnicodeDecodeError:
        text = value
    if not text or len(text) > longest or not text.isprintable():
        raise Problem(422, f"{header} must have 1 to {longest} printable characters, not {text[:40]!r} ({len(text)})")
    return text


def _preferred(prefer: str | None) -> float | None:
    """`wait` out of a `Prefer` header. What is not understood is ignored, as RFC 7240 (section 2) wants it."""
    if prefer is None:
        return None
    at_once = None
    for preference in prefer.split(","):
        bare = preference.partition(";")[0]
        found = _WAIT.fullmatch(bare)
        if found is not None:
            return min(float(found[1]), LONGEST_TIMEOUT)
        if _AT_ONCE.fullmatch(bare):
            at_once = 0.0
    return at_once
