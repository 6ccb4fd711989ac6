"""Where models are: object stores, folders, the Hub and web servers."""
