"""The standard pass@k estimate."""

import math


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of ``k`` samples passes, if ``passed`` of ``samples`` did:
    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1). Needs k <= samples."""
    assert 1 <= k <= samples and 0 <= passed <= samples
    return 1 - math.comb(samples - passed, k) / math.comb(samples, k)
