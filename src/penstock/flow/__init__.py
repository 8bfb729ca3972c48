"""What authors write: flows as frozen data, steps (one file each), windows, MapReduce. No I/O."""
