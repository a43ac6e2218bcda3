"""Settings for every test."""

from __future__ import annotations

import os

from hypothesis import settings

# No time limit for a single hypothesis example, because machines differ.
settings.register_profile("search_gym", deadline=None)
settings.load_profile("search_gym")

# Tensors are small here: a second thread mostly waits, on a busy machine for long. Child processes inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
