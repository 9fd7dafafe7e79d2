"""Compiled loops over columns. Their callers check what goes in; here nothing is checked."""
