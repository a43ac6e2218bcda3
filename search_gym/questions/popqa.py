"""PopQA, questions about entities of all degrees of popularity (Mallen et al. 2022, arXiv 2212.10511)."""

from search_gym.questions._flashrag import FlashRAGSet

SET = FlashRAGSet(
    name="popqa",
    title="PopQA",
    sizes={"test": 14_267},
    licence="MIT",
    citation="Mallen et al. 2022, arXiv 2212.10511",
)
SPLITS = SET.splits
COLON_OPTION = "data_dir"
load = SET.load
