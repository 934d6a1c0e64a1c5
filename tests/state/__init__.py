"""Mirrors fastrelay/state/."""
