"""What runs in processes of its own.

measure   one command from spawn to exit: wall, CPU and memory of everything it started
readers   the loaders, each as one command
raw       plain reads, as fast as this machine's network and disk give them
start     one start of vLLM, to its first token

`measure` and `readers` are run by their paths and need the standard library alone: whatever interpreter has a loader
can run it. No key is ever on a command line: what holds one is passed by the environment or by standard input.
"""
