"""Natural Questions, asked of a search engine by its users, in the open-domain version (NQ-open)."""

from search_gym.questions._flashrag import FlashRAGSet

SET = FlashRAGSet(
    name="nq",
    title="Natural Questions",
    sizes={"train": 79_168, "dev": 8_757, "test": 3_610},
    licence="CC BY-SA 3.0",
    citation="Kwiatkowski et al. 2019 (TACL 7); Lee et al. 2019, arXiv 1906.00300",
)
SPLITS = SET.splits
COLON_OPTION = "data_dir"
load = SET.load
