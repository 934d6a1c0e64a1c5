"""Small programs that use fastrelay: to be read, and run by test_examples.py. Each says at its head how it is called."""
