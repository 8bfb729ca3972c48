"""Executors with recovery `passive` or `active`: the machine of `penstock.exchange.replica` with a chain, connectors
and sockets around it. See docs/replica.md."""
