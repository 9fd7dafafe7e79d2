"""Compiled loops over the rows of a pool. Their callers check what goes in; here nothing is checked."""
