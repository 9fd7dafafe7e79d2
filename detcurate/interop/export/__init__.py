"""The hand-over: suspected labels and subsets as files that annotation tools import, and their corrections back."""
