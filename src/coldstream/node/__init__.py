"""One node that runs an inference engine, whichever it is."""
