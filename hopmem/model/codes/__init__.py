"""Spherical codes: M free points in R^D whose largest cosine is smallest.

`search` puts it together; `arrangements` and `symmetry` are where it starts, `anneal` is how τ falls, and `smoothmax`
is what `lbfgs` and `newton` lower.
"""
