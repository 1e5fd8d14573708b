"""Several teachers of one student: loading them, their layer pairs, their shares, and how they are told apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import OTTransferConfig
from ..features.pairs import LayerPair, match_pairs
from ..losses.collective import merge_over_processes
from ..models.spec import parse_teacher
from ..models.teacher import Teacher
from ..ot.moments import PairMoments
from ..utils.settings import weights_of_terms


def load_teachers(teacher_model: Any, args: OTTransferConfig, student: nn.Module | None) -> list[Teacher]:
    """The teachers that a user gave: one or a list of hub ids, folders, modules, `Teacher`s or mappings.

    Args:
        teacher_model: What `OTTransferTrainer` takes. A mapping has the teacher under "id" and, if wanted, its weight,
            classes, layers, dtype, preprocessing ({mean, std, size}), resize, image_size and license: see `Teacher`.
        args: The settings: those of teachers hold for each that has none of its own.
        student: Refuse a teacher that shares weights with it.

    Raises:
        ValueError: no teacher where a term reads one, a mapping with an unknown key, or one teacher given twice.
    """
    sources = teacher_model if isinstance(teacher_model, list | tuple) else [teacher_model]
    sources = [source for source in sources if source is not None]
    asking = [w for n in ("layers", "logits") for w in weights_of_terms(type(args), needs=n) if args.takes_part(w)]
    if not sources and asking:
        given = ", ".join(f"{name}={getattr(args, name)}" for name in asking)
        raise ValueError(f"{given} ask for a teacher: give teacher_model, or set all of them to 0")
    options = {"dtype": args.teacher_dtype, "init_kwargs": args.teacher_model_init_kwargs or {}, "student": student}
    teachers = [Teacher.load(source, **options | settings) for source, settings in map(parse_teacher, sources)]
    for i, teacher in enumerate(teachers):
        if any(teacher.model is other.model for other in teachers[:i]):
            raise ValueError(f"the teacher {teacher.title} is given twice: give it once, with a weight of 2")
    return teachers


def teacher_names(teachers: Sequence[Teacher]) -> list[str]:
    """What each teacher is called in logs: the last part of its name, with its number where that is not its own.

    Example:
        >>> teacher_names([Teacher(nn.Linear(2, 2), name="org/a"), Teacher(nn.Linear(2, 2)), Teacher(nn.Linear(2, 2))])
        ['a', 'Linear@1', 'Linear@2']
    """
    names = [teacher.title.rstrip("/").split("/")[-1] or "teacher" for teacher in teachers]
    return [name if names.count(name) == 1 else f"{name}@{i}" for i, name in enumerate(names)]


def pairs_of_teachers(args: OTTransferConfig, student: nn.Module, teachers: Sequence[Teacher]) -> list[LayerPair]:
    """The layer pairs: a teacher's own `layers`, and `layer_pairs` of the config for those that have none.

    Raises:
        ValueError: as `match_pairs`; or `layer_pairs` names a teacher that has layers of its own.
    """
    models = [teacher.model for teacher in teachers]
    own = [i for i, teacher in enumerate(teachers) if teacher.layers is not None]
    pairs = []
    if len(own) < len(teachers) or not teachers or args.layer_pairs != ["last"]:
        for spec in args.layer_pairs if own else [args.layer_pairs]:
            found = match_pairs(spec, student, models, positions=args.layer_positions)
            left = [pair for pair in found if pair.teacher_index not in own]
            if not left:
                raise ValueError(
                    f"layer_pairs={spec!r} speaks of the teacher {teachers[found[0].teacher_index].title}, which has "
                    "layers of its own: say it in one place"
                )
            pairs += left
    for i in own:
        found = match_pairs(teachers[i].layers or (), student, [models[i]], positions=args.layer_positions)
        pairs += [dataclasses.replace(pair, teacher_index=i) for pair in found]
    return sorted(pairs, key=lambda pair: pair.teacher_index) if own else pairs


def pair_shares(pairs: Sequence[LayerPair], weights: Sequence[float]) -> list[float]:
    """Each pair's share of a term that compares layers; the shares sum to 1.

    Every teacher that has pairs gets a share by its weight, whatever the number of its pairs, and its pairs divide it
    by theirs.

    Args:
        pairs: The layer pairs.
        weights: One weight a teacher.

    Example:
        >>> pairs = [LayerPair("a", "x"), LayerPair("b", "y"), LayerPair("b", "z", teacher_index=1)]
        >>> pair_shares(pairs, [1.0, 3.0])
        [0.125, 0.125, 0.75]
    """
    of_teacher: dict[int, float] = {}
    for pair in pairs:
        of_teacher[pair.teacher_index] = of_teacher.get(pair.teacher_index, 0.0) + pair.weight
    whole = sum(weights[i] for i in of_teacher)
    return [weights[p.teacher_index] / whole * (p.weight / of_teacher[p.teacher_index]) for p in pairs]


def teacher_logs(
    term: str, values: Sequence[Tensor], pairs: Sequence[LayerPair], shares: Sequence[float], names: Sequence[str]
) -> dict[str, Tensor]:
    """A term that compares layers, teacher by teacher: "term/name" is the mean over the teacher's own pairs.

    Empty where there is one teacher.
    """
    if len(names) < 2:
        return {}
    logs = {}
    for i, name in enumerate(names):
        mine = [k for k, pair in enumerate(pairs) if pair.teacher_index == i]
        if mine:
            whole = sum(shares[k] for k in mine)
            logs[f"{term}/{name}"] = torch.stack([shares[k] / whole * values[k].detach() for k in mine]).sum()
    return logs


@torch.no_grad()
def teacher_variance(teacher: Tensor, everywhere: bool) -> Tensor:
    """() Mean variance of a teacher's neurons over the samples: the unit of a loss in raw values.

    With several teachers, such a loss is divided by it, so that a teacher whose activations are large is not heard more
    than another. 1 where nothing varies.

    Args:
        teacher: (n, d_t), or maps (n, d_t, positions), whose positions are samples.
        everywhere: Over the samples of all processes (`all_gather` and `all_reduce` of 2 d_t numbers).
    """
    rows = teacher.detach().transpose(1, -1).reshape(-1, teacher.shape[1]).float()
    count = rows.new_full((), float(len(rows)))
    none, cross = rows.new_zeros(0), rows.new_zeros(0, rows.shape[1])
    variance, mean = torch.var_mean(rows, 0, correction=0)
    moments = PairMoments(count, none, mean, none, variance, cross)
    if everywhere:
        (moments,) = merge_over_processes([moments])
    return unit_of(moments.var_t.mean())


def unit_of(variance: Tensor) -> Tensor:
    """() The variance itself; 1 where there is none to speak of."""
    variance = variance.detach()
    return torch.where(variance > 1e-12, variance, 1.0)
