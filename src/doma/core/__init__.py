"""Pure shared ground: errors, configuration, names, URLs, checksums, ranges, state tables."""
