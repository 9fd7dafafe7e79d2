"""Export the relabel queue or a subset to annotation tools."""
