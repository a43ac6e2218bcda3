"""Material of the exercise `clipped-loss`."""
