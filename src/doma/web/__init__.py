"""Pages and streams for people and for monitoring."""
