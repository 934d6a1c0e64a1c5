"""The roles: what they decide, and what they do in a process of their own loop."""
