"""The training mixture of Search-R1: Natural Questions, then HotpotQA (Jin et al. 2025, arXiv 2503.09516)."""

from search_gym.questions import hotpotqa, nq
from search_gym.questions._flashrag import Mixture

SET = Mixture(name="nq_hotpotqa", title="Natural Questions and HotpotQA", parts=(nq.SET, hotpotqa.SET))
SPLITS = SET.splits
COLON_OPTION = "data_dir"
load = SET.load
