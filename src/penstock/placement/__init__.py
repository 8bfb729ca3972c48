"""Pure functions that decide which worker runs which executor."""
