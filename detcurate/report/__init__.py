"""The report: what was bought, and how sure that is."""
