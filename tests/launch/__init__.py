"""Real launches on one machine: unmodified SkyPilot, a cloud that is moto's server, and machines that are namespaces.

namespace    processes with a network, mounts and process ids of their own
certificate  for the network check of SkyPilot, which asks two addresses of the internet by https
catalogue    the machines and prices that SkyPilot chooses from
image        what a machine of the cloud starts with: SkyPilot's runtime, and neither coldstream nor vLLM
stand_in     an environment with coldstream and a stand-in for vLLM, to be published as a runtime
node         a machine: an overlay of this one's disk, and an SSH server in it
ssh          that server
names        the machines' name server, which knows no name and keeps what it is asked for
cloud        EC2's API, and the machines that it says are running
world        all of it in one network without a way out, and the commands that run there
leaks        where values of secrets have come to lie

They need root, Linux with overlayfs and network namespaces, and minutes: `make test-launch`.
"""
