"""Copies models into a store and manages them there: upload, list, verify, download, remove."""
