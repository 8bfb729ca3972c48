"""Records that the author's code or the way between two workers cannot take."""

import json

import pytest

DIVIDE = ".map('divide', lambda n: 1 / n)"
TWICE = ["--workers", "2", "--executors", "2"]


def test_a_step_that_raises(run, write):
    code, _, err = run(write("ps.iterable([1, 0])", DIVIDE))
    assert code == 1
    assert err.startswith("error: step 'divide': ZeroDivisionError: division by zero\n  record: 0\n  at author.py:3")


def test_a_step_that_raises_skips_and_counts(run, write):
    code, out, err = run(write("ps.iterable([1, 0, 2])", DIVIDE, on_error="skip"))
    assert (code, out) == (0, "1.0\n0.5\n")
    assert 'counted: {"divide.skipped":1}' in err


KEYED = ".map('make', lambda r: object()).key_by('key', lambda r: 1).fold('f', 0, lambda s, r: (s, s))"
UNFIT = {
    "a key that cannot be hashed": (
        ".key_by('key', lambda r: {'a': r}).count('n')", "ps.stdout()",
        ["step 'key'", "unhashable type: 'dict'", "author.py:3"],
    ),
    "a key without a stable hash": (
        ".key_by('key', lambda r: object()).count('n')", "ps.stdout()",
        ["a key of type builtins.object cannot be used", "a key is text, a number"],
    ),
    "a record that cannot travel": (KEYED, "ps.stdout()", ["builtins.object cannot travel", "use str, numbers"]),
    "a record that JSON cannot hold": (
        ".map('make', lambda r: object())", "ps.stdout()",
        ["builtins.object, which JSON cannot express", "map it to text"],
    ),
    "a record that cannot be collected": (
        ".map('make', lambda r: object())", "ps.collect()",
        ["step 'out': a record cannot be collected", "map it to text"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit(run, write, name):
    steps, sink, said = UNFIT[name]
    code, _, err = run(write("ps.iterable([1, 2])", steps, sink), *TWICE)
    assert code == 1
    for words in said:
        assert words in err


def test_keys_that_cannot_be_used_are_skipped_and_counted(run, write):
    steps = ".key_by('key', lambda r: r).count('n')"
    code, out, err = run(write("ps.iterable(['a', ['b']])", steps, on_error="skip"), *TWICE)
    assert code == 0, err
    assert [json.loads(line) for line in out.splitlines()] == [{"key": "a", "value": 1}]
    assert 'counted: {"key.skipped":1}' in err
