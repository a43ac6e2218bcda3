"""``python -m agents.baselines METHOD``: see `agents.baselines.run`."""

import sys

import tyro
from transformers.utils.logging import disable_progress_bar

from agents.baselines import run
from search_gym.errors import SearchGymError

if __name__ == "__main__":
    disable_progress_bar()
    try:
        run.main(tyro.cli(run.PromptingConfig, prog="python -m agents.baselines", description=run.__doc__))
    except SearchGymError as error:
        sys.exit(f"error: {error}")
