"""The settings of a transfer, without those of transformers' `TrainingArguments`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..utils.messages import check_choice
from ..utils.settings import setting as _setting
from ..utils.settings import weight_counts, weights_of_terms
from .combinations import check_together, settle_method
from .data import DataSettings
from .models import ModelSettings
from .names import (
    AUTO,
    DEAD_NEURONS,
    FEATURE_INPUTS,
    KD_METHODS,
    OT_COSTS,
    OT_METHODS,
    POSITIONS,
    SELECT_BY,
    TEACHER_MASS,
    TOKENS,
)


@dataclass
class TransferSettings(DataSettings, ModelSettings):
    """What `OTTransferConfig` adds to `transformers.TrainingArguments`. It imports neither torch nor transformers.

    The loss of a step is

        task_weight * task + ot_weight * (weighted mean over layer pairs of W) + kd_weight * KD + l2sp_weight * L2-SP
        + feature_weight * (weighted mean over layer pairs of feature_loss) + delta_weight * DELTA + bss_weight * BSS

    > Parameters that weigh the terms

        task_weight: Weight of the student's own loss on the labels. 0 trains without labels.
        ot_weight: Weight of the transport term. Left out (None): 10 where the student learns what the teacher knows
            (task_weight is 0, kd_weight above 0, or both name their classes alike), or else 1; docs/study.md says why.
        ot_warmup_steps: Steps over which the transport weight rises linearly from 0; a number below 1 is a share of
            all steps.
        kd_weight: Weight of logit distillation.
        kd_temperature: Temperature of logit distillation.
        l2sp_weight: Weight of the decay toward the pretrained weights.

    > Parameters that choose what transport is compared with, on the same layer pairs

        feature_loss, feature_weight: A loss of `hf_reprot.losses.baselines`, with its defaults, and its weight:
            "fitnet", "attention", "nst", "rkd", "similarity", "cka", "crd", "wkd" or "rsd". Set ot_weight=0 to have it
            instead of transport.
        kd_method, dkd_alpha, dkd_beta: "kl", or "dkd" (decoupled; needs labels) with its two weights; the authors'
            kd_temperature is 4.
        delta_weight: Weight of DELTA (uniform attention), for a student that starts as a copy of the teacher.
        bss_weight, bss_k: Weight of batch spectral shrinkage of the student's last representation, and how many
            singular values. No teacher takes part.

        "attention", "nst", "wkd" and DELTA see maps over positions, whatever ot_positions says: "last" is then the last
        layer that has positions. "rkd", "similarity" and "cka" see one row an image, the pooled layer or, with
        ot_positions="all", the whole map.

    > Parameters that choose what is compared

        layer_pairs: "last", "stages", "auto", or a list of "student_layer=teacher_layer" or of
            {student, teacher, weight, teacher_index}.
        layer_refresh_steps, layer_keep, layer_order_prior, layer_samples: With layer_pairs="auto" (see
            `hf_reprot.matching.plan_layers`): how often the pairs are found anew, how many a student layer keeps, the
            weight of the order prior, and the samples that layers are measured on.
        ot_positions: "pooled" (one sample an image or text) or "all" (every position is a sample).
        ot_tokens: Which tokens of a transformer: "auto", "class", "patches" or "all".

    > Parameters that control the transport

        ot_method, ot_cost, ot_standardize, ot_relative_epsilon, ot_epsilon, ot_debiased, ot_tolerance,
        ot_max_iterations, ot_dead_neurons, ot_teacher_mass: as in `RepresentationTransport`; with ot_method="gaussian",
            ot_teacher_mass and ot_relative_epsilon as in `GaussianTransport`. ot_method="auto" becomes "gaussian" where
            task_weight is 0 and ot_positions "pooled", unless a setting beside it needs neurons that are matched one by
            one, or else "sinkhorn"; docs/study.md says why. ot_cost="learned" freezes a plan under a cost that
            `hf_reprot.experimental.inverse.learn_neuron_cost` learns before the first step.
        cost_fit_steps, cost_regularisation: How many batches a cost is learned from, and how cautiously.
        select_k, select_by, select_until: Let only k teacher neurons carry the mass, chosen by learned scores; see
            `NeuronSelection`.
        plan_momentum: 0 solves the plan on the batch; above 0 on moments carried over steps. Left out (None): 0.9 with
            ot_method="gaussian", or else 0.
        ot_global_batch: Match neurons on the samples of all processes.
        ot_nonfinite_limit: Number of consecutive steps with a non-finite transport term after which training stops.

    > Parameters that control the student and the teacher

        ema_decay: d of average <- d * average + (1 - d) * weights after each step, from the weights after the first one
            (`torch.optim.swa_utils.AveragedModel`, buffers as well). The average is what is evaluated, saved and
            pushed, and the student when training is over. None: no average.
        student_dtype: None: float32 where weights come in half precision; "auto": as they are; "bfloat16", "float16".
        teacher_model_init_kwargs: Keyword arguments for `from_pretrained` of a teacher given by name.
        teacher_dtype: Data type in which a teacher is loaded.
        teacher_image_size: Side of the images that teachers see, in pixels, or "auto": the size at which a teacher's
            last layer with positions has as many as the student's. Left out: their own where they have one, else the
            student's. A teacher's own `image_size` goes before it.
        teacher_compile: Backend of `torch.compile` for the teachers ("inductor"; True means this one).
        teacher_offload: Keep teachers on the CPU, and bring each to the device only while it runs.
        teacher_sharded: Spread each teacher's weights over all processes (`fully_shard`).

    > Parameters that say what the data are and what is measured on them

        evaluate_representation: Evaluations run the teachers, too, and measure frozen representations: `eval_ot_loss`
            and, with labels, what `hf_reprot.models.probing` does (`eval_knn_accuracy`, ...), of student and teacher.

        image_column, label_column: Columns of the raw images and of their labels; default: found by name and type
            (`hf_reprot.data.dataset_columns.find_columns`).
        augmentation: As in `hf_reprot.data.ImageCollator`, which takes callables, too; left out: none.
        mixup_alpha, cutmix_alpha: torchvision's `MixUp` and `CutMix` of each batch in training: labels and teachers see
            the mixed images. Both above 0: one of the two, drawn for each batch.
    """

    task_weight: float = _setting(
        1.0, "Weight of the student's own loss on the labels; 0 trains without labels.", term="task"
    )
    ot_weight: float | None = _setting(
        None,
        "Weight of the transport term; default: 10 if the teacher knows the student's task, else 1.",
        term="transport (weighted mean over the matched layers)",
        needs="layers",
    )
    ot_warmup_steps: float = _setting(
        0, "Steps over which the transport weight rises linearly from 0; below 1: a share of all steps.", of_loss=True
    )
    kd_weight: float = _setting(0.0, "Weight of logit distillation (KL at kd_temperature).", term="KL", needs="logits")
    kd_temperature: float = _setting(2.0, "Temperature of logit distillation.", of_loss=True)
    l2sp_weight: float = _setting(
        0.0,
        "Weight of ||w - w0||^2 to the weights that training starts from (L2-SP).",
        term="squared distance from the weights at the start",
    )

    feature_loss: str | None = _setting(
        None,
        "A feature loss on the layer pairs, in addition to transport or, with ot_weight 0, instead of it.",
        choices=list(FEATURE_INPUTS),
        of_loss=True,
    )
    feature_weight: float = _setting(
        1.0,
        "Weight of feature_loss.",
        term="{feature_loss} (weighted mean over the matched layers)",
        needs="layers",
        only_with="feature_loss",
    )
    kd_method: str = _setting(
        "kl", 'Logit distillation: "kl", or "dkd" (decoupled; needs labels).', choices=list(KD_METHODS), of_loss=True
    )
    dkd_alpha: float = _setting(1.0, "Weight of the label's part of decoupled distillation.", of_loss=True)
    dkd_beta: float = _setting(8.0, "Weight of the other classes' part of decoupled distillation.", of_loss=True)
    delta_weight: float = _setting(
        0.0,
        "Weight of the distance to the pretrained feature maps (DELTA); the student starts as the teacher's copy.",
        term="squared distance from the teacher's feature maps",
        needs="layers",
    )
    bss_weight: float = _setting(
        0.0,
        "Weight of batch spectral shrinkage of the student's last representation.",
        term="squares of the bss_k smallest singular values of the features",
    )
    bss_k: int = _setting(1, "Smallest singular values that batch spectral shrinkage penalises.", of_loss=True)

    layer_pairs: list[str] = _setting(
        ["last"],
        'Layers to match: "last" (the representation before the head), "stages", "auto" (experimental: found by '
        "transport between layers, see layer_refresh_steps), or student=teacher, each a module path (as in "
        '"layer4=vit.layers.11"), "stage:i" or "block:i". Behind a path, ":input" takes what goes into the module, and '
        '":nchw", ":nhwc" or ":prefixN" says what its axes are where the model does not show it.',
    )
    layer_refresh_steps: int = _setting(100, 'layer_pairs="auto": steps between two matchings of the layers.')
    layer_keep: int = _setting(2, 'layer_pairs="auto": maximum number of teacher layers kept per student layer.')
    layer_order_prior: float = _setting(
        0.0, 'layer_pairs="auto": weight of (difference in relative depth)^2 in the cost of a pair; 0: order is found.'
    )
    layer_samples: int = _setting(256, 'layer_pairs="auto": training samples that layers are measured on.')
    ot_positions: str = _setting(
        "pooled", 'Samples: "pooled" (one per image or text) or "all" (every position).', choices=list(POSITIONS)
    )
    ot_tokens: str = _setting(
        "auto",
        'Tokens of a transformer: "auto" (the class token where the layer feeds a head that reads it, else the '
        'patches), "class", "patches" or "all".',
        choices=list(TOKENS),
    )

    ot_method: str = _setting(
        AUTO,
        'How neurons are matched: "sinkhorn", "proximal", "exact"; "gaussian" (the best rotation of one set of neurons '
        'onto the other, see `GaussianTransport`); or a control: "identity", "random", "independent". "auto": '
        '"gaussian" where training goes without labels on pooled neurons, or else "sinkhorn".',
        choices=[AUTO, *OT_METHODS],
    )
    ot_teacher_mass: str = _setting(
        "variance",
        'ot_method="gaussian": what each teacher neuron weighs, "variance" (its own) or "uniform".',
        choices=list(TEACHER_MASS),
    )
    ot_cost: str = _setting(
        "sqeuclidean",
        'Ground cost between two neurons; or "learned" (experimental): which neurons go together is learned from the '
        "first batches by inverse transport, before the first step, and frozen.",
        choices=list(OT_COSTS),
    )
    cost_fit_steps: int = _setting(
        16, 'Batches that ot_cost="learned" is learned from, before the first step (at most one pass over the data).'
    )
    cost_regularisation: float = _setting(
        1.0, "Weight of the penalty on a learned cost; very large, the cost is that of the correlations."
    )
    ot_standardize: bool = _setting(True, "Bring every neuron to zero mean and unit variance before comparing.")
    ot_relative_epsilon: float | None = _setting(
        None, "Entropic (proximal) strength in units of the pair's mean cost; default 0.01 (0.2; gaussian: 0.1)."
    )
    ot_epsilon: float | None = _setting(None, "The same in units of the cost; overrides ot_relative_epsilon.")
    ot_debiased: bool = _setting(False, "Use the Sinkhorn divergence: the value less half of the two self terms.")
    ot_tolerance: float = _setting(1e-3, "L1 error of the marginals at which the solver stops.")
    ot_max_iterations: int = _setting(1000, "Maximum number of Sinkhorn iterations.")
    ot_dead_neurons: str = _setting(
        "keep", '"keep", or "ignore": neurons constant over the samples get weight 0.', choices=list(DEAD_NEURONS)
    )
    select_k: float | None = _setting(
        None, "Number of neurons of each teacher layer that carry the mass, or their fraction (below 1); None: all."
    )
    select_by: str = _setting(
        "task",
        'What the choice is learned from: "task" (a linear read-out of the labels from the teacher\'s neurons) or '
        '"transport" (the neurons that are easiest to match; needs no labels).',
        choices=list(SELECT_BY),
    )
    select_until: float = _setting(
        0.5, "Share of all steps over which the choice is learned and sharpened; it is fixed for the others."
    )
    plan_momentum: float | None = _setting(
        None,
        "0: the plan comes from the batch; in (0, 1): from moments carried over steps with this momentum; default: 0.9 "
        'with ot_method="gaussian", or else 0.',
    )
    ot_global_batch: bool = _setting(True, "Match neurons on the samples of all processes, not of each process alone.")
    ot_nonfinite_limit: int = _setting(
        10, "Number of consecutive steps with a non-finite transport term after which training stops with an error."
    )

    logging_steps: float = _setting(10, "Steps between two lines of the log; below 1: a share of all steps.")
    evaluate_representation: bool | None = _setting(
        None, "In evaluation, measure the representation: transport, k-NN, linear probe; left out: if task_weight is 0."
    )

    def check(self) -> None:
        """Refuses what is not legal, and makes a list of a single layer pair.

        Raises:
            ValueError: a value that is not legal, or settings that do not go together.
        """
        self.check_data_settings()
        self.check_model_settings()
        if isinstance(self.layer_pairs, str | dict):
            self.layer_pairs = [self.layer_pairs]
        if not self.layer_pairs:
            raise ValueError('layer_pairs is empty: give "last", "stages" or a list of student=teacher paths')
        for name in (*weights_of_terms(type(self)), "ot_warmup_steps", "dkd_alpha", "dkd_beta"):
            if name != "ot_weight" or self.ot_weight is not None:
                self._check_number(name, low=0)
        given = [name for name in ("ot_relative_epsilon", "ot_epsilon") if getattr(self, name) is not None]
        for name in ("kd_temperature", "ot_tolerance", "cost_regularisation", *given):
            self._check_number(name, low=0, open_low=True)
        for name in ("ot_max_iterations", "ot_nonfinite_limit", "cost_fit_steps", "layer_refresh_steps", "layer_keep"):
            self._check_number(name, low=1)
        self._check_number("layer_order_prior", low=0)
        self._check_number("layer_samples", low=2)
        if self.plan_momentum is not None and not 0 <= self.plan_momentum < 1:
            raise ValueError(f"plan_momentum must lie in [0, 1), got {self.plan_momentum}")
        check_choice("ot_positions", self.ot_positions, POSITIONS)
        check_choice("ot_tokens", self.ot_tokens, TOKENS)
        check_choice("ot_method", self.ot_method, (AUTO, *OT_METHODS))
        settle_method(self)
        check_choice("ot_teacher_mass", self.ot_teacher_mass, TEACHER_MASS)
        check_choice("ot_cost", self.ot_cost, OT_COSTS)
        check_choice("ot_dead_neurons", self.ot_dead_neurons, DEAD_NEURONS)
        check_choice("select_by", self.select_by, SELECT_BY)
        self._check_baselines()
        check_together(self)
        if not any(map(self.takes_part, weights := weights_of_terms(type(self)))):
            raise ValueError(f"no term takes part ({', '.join(weights)}): nothing to learn from is left")

    def _check_number(self, name: str, *, low: float, open_low: bool = False) -> None:
        value = getattr(self, name)
        legal = "above" if open_low else "at least"
        if not math.isfinite(value) or value < low or (open_low and value == low):
            raise ValueError(f"{name} must be a finite number {legal} {low}, got {value}")

    def _check_baselines(self) -> None:
        self._check_number("bss_k", low=1)
        check_choice("kd_method", self.kd_method, KD_METHODS)
        if self.kd_method == "dkd" and self.kd_weight > 0 and self.task_weight == 0:
            raise ValueError(
                "kd_method='dkd' splits the teacher's answer by the label, and task_weight=0 trains without labels: "
                "set kd_method='kl', or a task_weight above 0"
            )
        if self.feature_loss is None:
            return
        check_choice("feature_loss", self.feature_loss, list(FEATURE_INPUTS))
        if self.feature_loss == "crd" and self.ot_positions == "all":
            raise ValueError("feature_loss='crd' contrasts one vector an image: set ot_positions='pooled'")
        if FEATURE_INPUTS[self.feature_loss] == "samples" and getattr(self, "per_device_train_batch_size", 2) < 2:
            raise ValueError(
                f"feature_loss={self.feature_loss!r} relates the samples of a batch to one another: raise "
                "per_device_train_batch_size to 2 or more"
            )

    @property
    def uses_feature_loss(self) -> bool:
        """Whether a feature loss takes part."""
        return self.feature_loss is not None and self.feature_weight > 0

    @property
    def uses_transport(self) -> bool:
        """Whether transport takes part."""
        return self.ot_weight is None or self.ot_weight > 0

    @property
    def learns_cost(self) -> bool:
        """Whether the plans of transport follow from a cost that is learned first."""
        return self.uses_transport and self.ot_cost == "learned"

    @property
    def selects_neurons(self) -> bool:
        """Whether only some of the teacher's neurons carry the mass of the transport."""
        return self.uses_transport and self.select_k is not None

    @property
    def compares_layers(self) -> bool:
        """Whether a term compares the student's layers with a teacher's."""
        return any(self.takes_part(name) for name in weights_of_terms(type(self), needs="layers"))

    def takes_part(self, weight: str) -> bool:
        """Whether the term with this weight takes part."""
        return weight_counts(type(self), weight, vars(self))

    @property
    def layer_positions(self) -> str:
        """What "last" means among `layer_pairs`: "all" where a term needs a layer with positions."""
        maps = self.uses_feature_loss and FEATURE_INPUTS[self.feature_loss or ""] == "maps"
        return "all" if maps or self.delta_weight > 0 else self.ot_positions

    @property
    def finds_layers(self) -> bool:
        """Whether the layer pairs are found by transport between layers."""
        return "auto" in self.layer_pairs
