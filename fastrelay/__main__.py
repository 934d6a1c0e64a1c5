"""`python -m fastrelay` is `fastrelay`."""

from fastrelay.cli import main

if __name__ == "__main__":
    main()
