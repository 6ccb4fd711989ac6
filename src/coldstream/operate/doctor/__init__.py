"""What is wrong: the production checklist, and the guide to troubleshooting, as checks that look for themselves.

case       what is examined, and what was learnt of it so far
greeting   one request to the endpoint: does it answer, its certificate, its clock
network    configuration, secrets, endpoint, tls, clock
bucket     what the keys open; a round trip
model      complete, safetensors, hashes on a sample; its bundles
speed      of 1, 8, 32 and 64 connections, and what that means for the model
cdn        the domain in front of the bucket
node       cache folder, disk, memory, limits, GPUs
software   vLLM and our plugin in it, Run:ai, SkyPilot, hf-xet, the TLS library
checklist  all of them, in order, and which depends on which

A check is a function from a `Case` to a `probe.Check`. It reads; what it writes (probe objects) is gone when it ends.
What fails is found out once: whatever depends on it is then not looked at, and says so.
"""
