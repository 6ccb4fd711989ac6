"""`python -m coldstream` is the command `coldstream`."""

from coldstream.cli import main

if __name__ == "__main__":
    main()
