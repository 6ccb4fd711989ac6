"""The runtime: Python, vLLM, torch and coldstream in one read-only image in the bucket, for nodes that have none of it.

environment       puts an installed environment into one relocatable folder
image             packs the folder, with an unpacker for nodes that may not mount
runtime_manifest  what an image contains, needs, and hashes to
runtime_store     publishes, lists, verifies and removes images
bootstrap         the program that starts from an image on a bare node
"""
