"""The caching store: blocks, page checksums, one fetch for all waiting readers, purge."""
