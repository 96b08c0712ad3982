"""Proximal policy optimisation, whole and small: answers are sampled and scored, judged, and learned from.

Sources: PPO (Schulman et al. 1707.06347), generalised advantages (1506.02438), KL control of language models
(Ziegler et al. 1909.08593), reinforcement learning from human feedback (Ouyang et al. 2203.02155).

Shapes, in the names of tensors: B answers, P prompt tokens (padded on the left), A answer tokens (padded on the
right), T = P + A, H hidden size, V vocabulary. Masks are 1.0 where a token counts.
"""
