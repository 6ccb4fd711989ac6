"""The inference engines: one package for each."""
