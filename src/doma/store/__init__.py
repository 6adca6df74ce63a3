"""Where bytes live: one small Protocol, an engine a file, wrappers with the same Protocol."""
