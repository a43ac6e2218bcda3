"""TriviaQA, trivia questions with the aliases of their answers (Joshi et al. 2017, arXiv 1705.03551)."""

from search_gym.questions._flashrag import FlashRAGSet

SET = FlashRAGSet(
    name="triviaqa",
    title="TriviaQA",
    sizes={"train": 78_785, "dev": 8_837, "test": 11_313},
    licence="not stated by its authors",
    citation="Joshi et al. 2017, arXiv 1705.03551",
)
SPLITS = SET.splits
COLON_OPTION = "data_dir"
load = SET.load
