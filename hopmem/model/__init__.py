"""Every equation of the associative memory: tensors in, tensors out; no file, no terminal, no global state.

Rows are patterns everywhere. The letters are those of U-Hop (Wu et al., 2024, arXiv 2404.03827):

======  ==============  =========  ==================================================================
symbol  code            shape      meaning
======  ==============  =========  ==================================================================
Ξ       ``Xi``          [M, d]     stored patterns (memories)
x       ``X``           [B, d]     queries
Φ       ``phi``                    feature map Φ(u) = W u + b, with ``W`` [D, d] and ``b`` [D]
Z       ``Z``           [M, D]     unit features of the memories, Φ(Ξ)/‖Φ(Ξ)‖ row by row ("the code")
y       ``Y``           [B, D]     states in feature space; y₀ = Φ(x)/‖Φ(x)‖
p       ``P``           [B, M]     association weights, α-entmax(β Z y)
β       ``beta``                   inverse temperature, inside the entmax
α       ``alpha``                  1 softmax, 1.5, 2 sparsemax, any α ≥ 1
Δ_μ     ``delta``       [M]        separation K(ξ_μ, ξ_μ) − max_ν K(ξ_ν, ξ_μ) on Z
δ_μν    ``distance``               ‖z_μ − z_ν‖, so that Δ_μ = ½ min_ν δ_μν² on unit features
R_Φ     ``radius``                 ½ min δ_μν
======  ==============  =========  ==================================================================
"""
