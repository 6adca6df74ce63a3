"""The analysis facility: what a physicist calls."""
