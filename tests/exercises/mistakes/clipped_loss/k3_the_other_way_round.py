# The log-ratio has the wrong sign.
# expects: exchanged


def k3(logprobs, ref_logprobs):
    d = logprobs - ref_logprobs
    return np.exp(d) - d - 1
