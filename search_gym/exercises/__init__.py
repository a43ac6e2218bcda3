"""Running what students submit. `sandbox` calls a submission's functions in a limited process of its own."""
