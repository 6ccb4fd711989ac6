"""The timeline of a start: where start-up time went, recorded while the engine starts, saved, and shown."""
