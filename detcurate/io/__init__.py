"""Files, leases, worker processes and object storage."""
