"""Programs that `coldstream bench` runs in processes of their own, with no credentials on the command line."""
