"""Bamboogle, 2-hop questions that a search engine answers wrongly (Press et al. 2022, arXiv 2210.03350)."""

from search_gym.questions._flashrag import FlashRAGSet

SET = FlashRAGSet(
    name="bamboogle",
    title="Bamboogle",
    sizes={"test": 125},
    licence="MIT",
    citation="Press et al. 2022, arXiv 2210.03350",
)
SPLITS = SET.splits
COLON_OPTION = "data_dir"
load = SET.load
