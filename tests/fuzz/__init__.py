"""`python -m tests.fuzz NAME [--seconds N | --frames N] [--seed N]`; NAME is decoder, session or greeting. Each opens with its invariant."""
