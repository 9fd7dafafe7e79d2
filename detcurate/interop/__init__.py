"""Exchange with other tools: export formats, corrected labels, results of any detector."""
