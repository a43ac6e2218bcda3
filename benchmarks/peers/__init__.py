"""Other libraries beside this one; see ``python -m benchmarks.peers --help``."""
