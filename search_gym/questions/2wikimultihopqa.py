"""2WikiMultihopQA, questions made from Wikipedia and Wikidata together (Ho et al. 2020, arXiv 2011.01060)."""

from search_gym.questions._flashrag import FlashRAGSet

SET = FlashRAGSet(
    name="2wikimultihopqa",
    title="2WikiMultihopQA",
    sizes={"train": 15_000, "dev": 12_576},
    licence="Apache-2.0",
    citation="Ho et al. 2020, arXiv 2011.01060",
    test_split="dev",
)
SPLITS = SET.splits
COLON_OPTION = "data_dir"
load = SET.load
