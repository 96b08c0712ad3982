"""Whether units came to the arms in the declared shares; pure.

A split that is not what was declared (records lost on one arm, a version that answers nobody) makes every comparison
worthless, whatever its interval says: Fabijan et al., "Diagnosing Sample Ratio Mismatch" (KDD 2019).
"""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import chi2

MISMATCH = 0.001  # a p-value below it hides the results


def mismatch_p_value(units: Sequence[Sequence[int]], shares_bp: Sequence[Sequence[int]]) -> float:
    """Of Pearson's χ² over the strata together: (units of each arm) and (declared share of each arm) by stratum.

    Strata without units say nothing; 1 when none has any.
    """
    statistic, free = 0.0, 0
    for counts, shares in zip(units, shares_bp, strict=True):
        total, whole = sum(counts), sum(shares)
        if total == 0:
            continue
        expected = [total * share / whole for share in shares]
        statistic += sum((count - e) ** 2 / e for count, e in zip(counts, expected, strict=True))
        free += len(counts) - 1
    return float(chi2.sf(statistic, free)) if free else 1.0
