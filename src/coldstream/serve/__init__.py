"""`coldstream serve`: vLLM as a child, with its weights on their way before it is imported.

flags      reading the flags that the user gave to vLLM, and its configuration file
command    what runs: arguments and environment for each loader
budget     whether vLLM will find the memory that it asks for
program    the vLLM that is installed: where, which version
child      the process: signals, output, exit code
request    what the user asks for
warming    the caches of a start: what they depend on, where their bundles lie
preparing  the model found, its stream begun, its folder written
endpoint   where it answers, and what it is asked there
listener   which process listens there: none before vLLM starts, then vLLM itself
shard      each rank's own part of a model, for Run:ai's sharded loader
notice     the cloud's word that it takes this spot machine back
draining   what is done then
reason     why vLLM failed, by its output; pure
running    vLLM from its start to its end
"""

from __future__ import annotations

from coldstream.serve.command import LOADERS, Command
from coldstream.serve.preparing import prepared
from coldstream.serve.program import Program, find_program
from coldstream.serve.request import Request
from coldstream.serve.running import Started, serve
from coldstream.serve.warming import caches_folder

__all__ = [
    "LOADERS",
    "Command",
    "Program",
    "Request",
    "Started",
    "caches_folder",
    "find_program",
    "prepared",
    "serve",
]
