"""A map grid."""

from math import floor


def cell(lat: float, lon: float, degrees: float) -> str:
    """The grid cell of a position, named by its south-west corner."""
    return f"{floor(lat / degrees) * degrees:.3f},{floor(lon / degrees) * degrees:.3f}"
