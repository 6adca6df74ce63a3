"""Numbers about the running system."""
