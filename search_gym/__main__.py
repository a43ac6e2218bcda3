"""``python -m search_gym`` is the command ``search-gym``."""

from __future__ import annotations

import sys

from search_gym.cli import main

sys.exit(main())
