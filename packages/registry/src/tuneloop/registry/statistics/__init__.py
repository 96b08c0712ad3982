"""Intervals of shares, quantiles and differences: closed forms, pure and without numpy, which serving need not have."""
