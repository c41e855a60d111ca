"""pass@k, as the field has it."""

import math


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Unbiased estimate of the chance that one of ``k`` samples passes, from ``samples`` of which ``passed`` did:
    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1). Needs k <= samples."""
    assert 1 <= k <= samples and 0 <= passed <= samples
    return 1 - math.comb(samples - passed, k) / math.comb(samples, k)
