"""Settings for a model on GPUs: whether it fits, how many connections to use, and how long it will take to load."""
