"""The command line, one file for each room; what every command has in common is in tests/test_cli.py."""
