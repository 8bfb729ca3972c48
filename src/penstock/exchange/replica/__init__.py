"""The replicated executor: primary and standby, fail-over, planned promotion. See docs/replica.md."""
