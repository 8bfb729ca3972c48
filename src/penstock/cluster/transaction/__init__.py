"""A model operation on every node or on none: the pure part.

`records` is what is written down; `coordinator`, `admission` and `rebuild` are what happens in the store, each in one
atomic step; `participant` is one node's state machine, `contact` what it may believe about others, `instructions` its
words, `answers` what the caller is told, and `invariants` what must hold. Nothing here does I/O or reads a clock.
docs/transaction.md has the picture.
"""
