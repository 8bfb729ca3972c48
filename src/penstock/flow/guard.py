"""Calling the author's functions over a whole batch: C-speed while nothing raises, exact about the record when it does.

The loop is `extend(map(fn, iterator))`. When `fn` raises, what was produced stays in the list and the iterator knows
how many records are left, so the failing one is known without a `try` per record and without calling `fn` twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import compress
from operator import truth
from typing import Any, NamedTuple

from penstock.flow.operator import StepContext

__all__ = ["Applied", "apply", "choose", "is_identity", "without"]


class Applied(NamedTuple):
    """What came out, and the indexes of records that the policy left out (in order, usually none)."""

    results: list[Any]
    failed: list[int]


def apply(ctx: StepContext, fn: Callable[[Any], Any], values: list[Any], records: list[Any] | None = None) -> Applied:
    """`[fn(value) for value in values]` under the flow's failure policy. `records` are shown in errors instead of
    `values`. Raises `StepError` when the policy is to fail."""
    results: list[Any] = []
    failed: list[int] = []
    remaining = iter(values)
    total = len(values)
    while True:
        try:
            results.extend(map(fn, remaining))
        except Exception as error:
            problem: Exception = error
        else:
            if len(results) + len(failed) == total:
                return Applied(results, failed)
            # `map` takes a StopIteration from `fn` for the end of its input; the record must not vanish with it.
            problem = RuntimeError("the function raised StopIteration")
        index = len(results) + len(failed)
        ctx.on_error(ctx, (records or values)[index], problem)
        failed.append(index)


def choose(
    ctx: StepContext, fn: Callable[[Any], Any], records: list[Any], failed: list[int] | None = None
) -> list[Any]:
    """For each record whether `fn(record)` is true, false where the policy left it out (`failed` gets those)."""
    flags, left_out = apply(ctx, fn, records)
    if not set(map(type, flags)) <= {bool}:
        kept = without(records, left_out)
        flags, odd = apply(ctx, truth, flags, kept)
        if odd:
            places = sorted(set(range(len(records))).difference(left_out))
            left_out = sorted([*left_out, *(places[i] for i in odd)])
    for index in left_out:
        flags.insert(index, False)
    if failed is not None:
        failed += left_out
    return flags


def without(items: list[Any], indexes: Collection[int]) -> list[Any]:
    """`items` without the ones at `indexes`; the list itself when there are none."""
    if not indexes:
        return items
    keep = [True] * len(items)
    for index in indexes:
        keep[index] = False
    return list(compress(items, keep))


_IDENTITY = (lambda record: record).__code__


def is_identity(fn: Any) -> bool:
    """Whether `fn` is written as `lambda x: x`, so that it need not be called at all."""
    code = getattr(fn, "__code__", None)
    return (
        code is not None
        and code.co_code == _IDENTITY.co_code
        and (code.co_argcount, code.co_kwonlyargcount, code.co_flags & 0x2C) == (1, 0, 0)
        and not code.co_freevars
    )
