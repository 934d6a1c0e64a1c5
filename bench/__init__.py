"""Measurements of this relay and of others: what `python -m bench` runs. Never part of the package."""
