"""Exchange with other tools: export formats, corrections, and predictions of any detector."""
