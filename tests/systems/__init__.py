"""What other systems do, behaviour by behaviour: a module for each, with its name."""
