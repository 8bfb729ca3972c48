"""Fixtures of the cluster tests."""

from tests.cluster.conftest import prefix, valkey

__all__ = ["prefix", "valkey"]
