"""MuSiQue, 2-hop to 4-hop questions composed of single-hop ones (Trivedi et al. 2021, arXiv 2108.00573)."""

from search_gym.questions._flashrag import FlashRAGSet

SET = FlashRAGSet(
    name="musique",
    title="MuSiQue",
    sizes={"train": 19_938, "dev": 2_417},
    licence="CC BY 4.0",
    citation="Trivedi et al. 2021, arXiv 2108.00573",
    test_split="dev",
)
SPLITS = SET.splits
COLON_OPTION = "data_dir"
load = SET.load
