"""Programs that `coldstream bench` runs in processes of their own.

`measure` and `readers` are run by path, with whatever interpreter has a loader, and need only the standard library.
Credentials reach a program through its environment or its standard input, never through its command line.
"""
