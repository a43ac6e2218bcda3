"""Material of the exercise `design`."""
