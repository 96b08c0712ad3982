"""Experiments: versions compared on live traffic, declared before they start.

Statistics are pure and stand in modules of their own (`effect`, `spending`, `planning`, `split_check`, `bandit`);
`store` keeps declarations, `gather` reads traffic, `analysis` puts them together, `words` and `page` tell people.
Only `declaration` and `store` may be imported where numpy is not wanted.
"""
