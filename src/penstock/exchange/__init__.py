"""Pure protocol machines between executors: keys, frames, channels, barriers, checkpoints. See `docs/exchange.md`."""
