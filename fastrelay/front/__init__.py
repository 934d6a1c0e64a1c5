"""Doors beside public ports: each ends in the same three calls, may this be, who serves it, join."""
