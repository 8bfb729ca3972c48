"""Splitting and merging executors: key groups go from one executor to another while records flow. See docs/split.md."""
