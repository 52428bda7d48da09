"""How to choose a recipe, and what makes its rounding hurt less.

allocation      bits by water-filling and Lagrange multipliers; one of several choices for each
                item, within a budget, with the bound that says how far from the best it is
choices         what every site's weight may be, all in one structure; `trials`, noise on which
                picks of them run
budgets         prices in bytes, bit-operations, predicted seconds on a chip, joules
algebra         errors of sites as vectors that add: every recipe priced from one set of runs;
                `sketch`, the same to first order from a few adjoint passes
sensitivity     each site alone, beside Fisher information and the weight's own error
search          the pick of least error where errors add as vectors, and how far below any could be
recommendation  a recipe within a budget, checked on fresh noise beside uniform
baselines       what the field does instead: dear ends, additive scores, random, evolution
drafts          a quantized denoiser in the making; cures, and how they compose
stacks          several recipes in one program, each sample by its own; `controllers`, which choose
                them as samples run; `pacing`, how these are fitted and what they keep
states          the calls of a sampler at which cures look; `statistics`, what they see there
bases           smoothing, rotation, reordering, low rank: the basis in which products round
weights         clips, GPTQ, AdaRound: how weights round, from second moments
blocks          the same, learned from the prediction, block by block
tables          drafts as recipes of every site, and in real low precision
training        the same in training: weights, scales, clips, levels, low rank; `qat`
activations     static clips by step; the time path
splitting       grids of their own for the parts of a skip concatenation
corrections     mean errors of sites; the prediction's by call (PTQD, TAC, D2-DPM, compensation);
                `lines`, how they are fitted
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
