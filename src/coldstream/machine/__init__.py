"""This machine: its hardware and limits, its disks, and the processes that run on it."""
