"""The collapse study: does GRPO collapse where PPO does not, why, and what helps? ``python -m benchmarks.collapse``."""
