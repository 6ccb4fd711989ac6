"""Servers that stand in for remote services in tests."""
