"""The legal values of settings that are names."""

from __future__ import annotations

# hf_reprot.ot
COSTS = ("sqeuclidean",)
SOLVED = ("sinkhorn", "proximal", "exact")
CONTROLS = ("identity", "random", "independent")
METHODS = (*SOLVED, *CONTROLS)
DIFFERENTIABLE_WEIGHTS = ("sinkhorn", "exact")  # with marginals that a gradient flows into

# hf_reprot.losses
OT_COSTS = (*COSTS, "learned")
OT_METHODS = (*METHODS, "gaussian")
AUTO = "auto"  # settled by the other settings
TEACHER_MASS = ("variance", "uniform")
DEAD_NEURONS = ("keep", "ignore")
KD_METHODS = ("kl", "dkd")
# Of each feature loss: its class below `hf_reprot.losses.baselines`, and what a row of its inputs is (`input_kind`).
FEATURE_LOSSES = {
    "fitnet": ("fitnet:FitNet", "neurons"),
    "attention": ("attention:AttentionTransfer", "maps"),
    "nst": ("selectivity:NeuronSelectivityTransfer", "maps"),
    "rkd": ("relational:RelationalDistillation", "samples"),
    "similarity": ("similarity:SimilarityPreserving", "samples"),
    "cka": ("alignment:LinearCKA", "samples"),
    "crd": ("contrastive:ContrastiveDistillation", "samples"),
    "wkd": ("wasserstein:GaussianWasserstein", "maps"),
    "rsd": ("redundancy:RedundancySuppression", "neurons"),
}
FEATURE_INPUTS = {name: kind for name, (_, kind) in FEATURE_LOSSES.items()}

# What is compared
POSITIONS = ("pooled", "all")
TOKENS = ("auto", "class", "patches", "all")
SELECT_BY = ("task", "transport")
COMPARED_LAYERS = ("blocks", "stages", "last")

# Models and data
STUDENT_DTYPES = ("auto", "float32", "bfloat16", "float16")
TEACHER_DTYPES = ("auto", "float32", "float16", "bfloat16", "float64")
CACHE_DTYPES = ("float16", "bfloat16", "float32")
