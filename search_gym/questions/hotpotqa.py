"""HotpotQA, bridge and comparison questions over two pages (Yang et al. 2018, arXiv 1809.09600)."""

from search_gym.questions._flashrag import FlashRAGSet

SET = FlashRAGSet(
    name="hotpotqa",
    title="HotpotQA",
    sizes={"train": 90_447, "dev": 7_405},
    licence="CC BY-SA 4.0",
    citation="Yang et al. 2018, arXiv 1809.09600",
    test_split="dev",
)
SPLITS = SET.splits
COLON_OPTION = "data_dir"
load = SET.load
