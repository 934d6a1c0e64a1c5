"""What a relay and a client do: they decide and join, and never look at payload."""
