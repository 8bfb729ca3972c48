"""Random disordered streams for property tests, and what windows over them hold by brute force."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import strategies as st
from tests.flow.tape import END_TIME, MIN_TIME, Into, Rows, restart, start

from penstock.flow.windows import Session


@st.composite
def streams(draw, late_ms=50, lanes=3, keys=3):
    """Batches `(lane, [(key, time, value), …])`; no time is more than `late_ms` behind its lane."""
    clock = defaultdict(lambda: draw(st.integers(-100, 100)))
    batches = []
    for _ in range(draw(st.integers(1, 12))):
        lane = draw(st.integers(0, lanes - 1))
        records = []
        for _ in range(draw(st.integers(1, 6))):
            clock[lane] += draw(st.integers(0, 40))
            time = clock[lane] - draw(st.integers(0, late_ms))
            records.append((draw(st.integers(0, keys - 1)), time, draw(st.integers(-5, 5))))
        batches.append((lane, records))
    return batches


def brute_force(window, batches):
    """`{(key, start, end): sorted [(time, value), …]}` over all records at once."""
    found = defaultdict(list)
    records = [record for _, batch in batches for record in batch]
    if isinstance(window, Session):
        for key in {record[0] for record in records}:
            run = []
            for time, value in sorted((t, v) for k, t, v in records if k == key):
                if run and time - run[-1][0] > window.gap_ms:
                    found[key, run[0][0], run[-1][0] + window.gap_ms] = run
                    run = []
                run.append((time, value))
            found[key, run[0][0], run[-1][0] + window.gap_ms] = run
        return dict(found)
    for key, time, value in records:
        first = time // window.slide_ms * window.slide_ms
        for begin in range(first, time - window.size_ms, -window.slide_ms):
            found[key, begin, begin + window.size_ms].append((time, value))
    return {at: sorted(members) for at, members in found.items()}


def drive(stamp, step, batches, *, restart_at=None, make=None):
    """Feed keyed batches through a stamp into a window, then end. Gives (main tape logs, late values, operators)."""
    operator, main, late = start(step)
    mains, lates = [main], [late]

    def open_lanes():
        stamper, _ = start(stamp)
        stamper.connect((Into(operator),))
        for lane in sorted({lane for lane, _ in batches}):
            stamper.advance(0, lane, MIN_TIME)
        return stamper

    stamper = open_lanes()
    for i, (lane, records) in enumerate(batches):
        if i == restart_at:
            operator, main, late = restart(step, operator)
            mains.append(main)
            lates.append(late)
            stamper = open_lanes()
        if make is not None:
            stamper.process(0, make(lane, records))
        else:
            stamper.process(0, Rows([{"t": t, "v": v} for _, t, v in records], [k for k, _, _ in records], None, lane))
    for lane in sorted({lane for lane, _ in batches}):
        stamper.advance(0, lane, END_TIME)
    operator.finish()
    return mains, lates, operator
