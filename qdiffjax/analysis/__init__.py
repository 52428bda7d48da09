"""Quantization error of a sampler: where it arises, how it travels, what bounds it.

trajectories   two runs on one noise, local errors
propagation    from local errors to the final error: fan, first order, homotopy
ledger         contributions of every (site, step) to the error that happened
ablation       what quantizing one (site, step) alone would do
covariance     random local errors: variance and bias of the final sample
rounding_variance
               the same from the roundings at a network's sites
coherence      which errors add up and which cancel; shares of weights and activations
scaling        laws in the number of steps, stochastic against nearest rounding
guidance       what guidance does to the errors of its branches
curvature      second order: where first order will fail, known beforehand
prediction     the final error from the full-precision run alone
literal        the survey's formulas of accumulation, for comparison
bounds         along the run, checked against measurement
transport_bounds
               W2 from errors along the way
rounding_law   what biased, unbiased and absorbed rounding cost in KL
profiles       which steps matter, by KL and by the final error
labels         what kind of bound a number is, and what it assumes
amplification  when errors grow: gains on data of a known law, volumes, mode flips
spectra        singular values of steps and of the whole sampler, sample by sample
lyapunov       rates of growth: Lyapunov exponents, logarithmic norms
certificates   valid for sets of inputs and every rounding outcome, of small networks
divergences    KL, W2 and MMD with their uncertainty
"""
