"""Deployments on other machines: the files for SkyPilot, Kubernetes and others, and launches through SkyPilot."""
