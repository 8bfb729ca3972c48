"""A model as a package: the flow of `examples/taxi_speed.py`, with a manifest, settings and a self-test."""
