"""Programs that `coldstream bench` runs in processes of their own.

Credentials reach them through the environment or standard input, never through the command line.
"""
