"""Column delivery: a query becomes a typed plan becomes columns."""
