"""Files, processes and storage: what every stage reads and writes with."""
