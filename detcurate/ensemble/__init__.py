"""The members of an ensemble and the iterations at which they are saved."""
