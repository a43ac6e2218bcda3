"""Material of the exercise `grpo-baseline`."""
