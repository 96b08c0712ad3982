"""Bias by gender, race and age: counterfactual templates, their scores, and the judgement.

templates  what is read: sentences that differ in the person only
judge      what the scores say, with intervals and error rates; pure
check      reading them on an engine, and keeping the result with a version
"""
