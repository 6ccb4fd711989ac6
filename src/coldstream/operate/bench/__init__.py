"""`coldstream bench`: compares ways of loading a model on this machine."""
