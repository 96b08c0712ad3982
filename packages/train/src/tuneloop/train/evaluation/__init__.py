"""Measuring a model on held-out sets, before and after, with intervals; and judging a challenger by it."""
