"""Rollouts: a version given more and more of the traffic, judged on the way.

`rollout` says what one is and what it does next, `canary` what its traffic shows; both are pure. `store` keeps them,
`signals` what the monitor says,
`judging` reads the traffic that counts, `advancing` takes one step, `controller` goes on with all of them, and
`steering` is what people do to them.
"""
