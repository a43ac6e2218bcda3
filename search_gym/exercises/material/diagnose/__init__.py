"""Material of the exercise `diagnose`."""
