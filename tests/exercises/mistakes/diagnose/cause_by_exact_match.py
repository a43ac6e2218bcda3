# Names the cause by how well the run went.
# expects: What gives


def cause(metrics):
    return "healthy" if metrics["rollout/em"][-5:].mean() > 0.2 else "steps too large"
