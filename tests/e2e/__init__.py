"""Whole processes: `fastrelay server` and `fastrelay client`, with raw sockets and real programs at both ends."""
