"""One layer's activations, and two layers' activations as tables with the same samples."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from .layout import Tokens

POSITIONS = ("pooled", "all")
TOKENS = ("auto", "class", "patches", "all")


@dataclass
class Activation:
    """The activations of one layer for one batch, and the meaning of their axes.

    Attributes:
        tensor: (n, c), (n, c, h, w), (n, h, w, c), (n, l, c) or (n, c, l), as the layer gave it.
        layout: Which of these: "nc", "nchw", "nhwc", "nlc", "ncl".
        name: The layer, for errors.
        tokens: What the sequences are made of; used where there is an axis of tokens.
        prefix: Tokens before the patches in this tensor.
        grid: (height, width) of the patches in this tensor; None for text, or where it is not known.
        reads_class: Whether the model's own representation of this layer is its class token.
        kept: (n, l) 1 for patches and 0 for what pads them, where images have different numbers of patches (NaFlex).
    """

    tensor: Tensor
    layout: str
    name: str = "the layer"
    tokens: Tokens = field(default_factory=Tokens)
    prefix: int = 0
    grid: tuple[int, int] | None = None
    reads_class: bool = False
    kept: Tensor | None = None

    @property
    def width(self) -> int:
        """Number of neurons."""
        return self.tensor.shape[self.layout.index("c")]

    @property
    def is_text(self) -> bool:
        """Whether the positions are the tokens of a text."""
        return self.layout in ("nlc", "ncl") and self.tokens.modality == "text"

    def sequence(self) -> Tensor:
        """(n, l, c) of a layer with tokens."""
        return self.tensor.transpose(1, 2) if self.layout == "ncl" else self.tensor


def pair_neurons(
    student: Activation,
    teacher: Activation,
    *,
    positions: str = "pooled",
    tokens: str = "auto",
    mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    padded: bool = False,
) -> tuple[Tensor, Tensor]:
    """A student's and a teacher's layer as two tables with the same samples in the same order.

    Args:
        student: The student's layer.
        teacher: The teacher's layer, for the same batch.
        positions: "pooled": one sample per image or text. "all": every position is a sample; two grids of different
            sizes are both averaged down to the coarser one, never interpolated up.
        tokens: For layers with tokens. "class": the class token (of a causal text model, the last token kept).
            "patches": all but the class, distillation and register tokens. "all": all tokens. "auto": pooled, the class
            token where the layer is the one that the model's head reads it from, else the mean of the patches or, for
            text, of the tokens kept; with every position as a sample, the patches or tokens kept.
        mask: (n, l), 1 for the tokens of a text to keep; padding is in no sample and no mean. Dropping it for
            positions="all" waits for the device once, as the number of samples depends on the data (see `padded`).
        teacher_mask: The same for a teacher with a tokenisation of its own; None: the student's. Only for pooled
            layers: with every position as a sample, both must have the same tokens.

    Returns:
        S (samples, d_s) and T (samples, d_t).

    Raises:
        ValueError: batches of different sizes, positions that do not go together, a class token that a model does not
            have, or an option that does not exist.
    """
    _check("positions", positions, POSITIONS)
    _check("tokens", tokens, TOKENS)
    if student.tensor.shape[0] != teacher.tensor.shape[0]:
        raise ValueError(
            f"{student.name} (student) has {student.tensor.shape[0]} samples and {teacher.name} (teacher) "
            f"{teacher.tensor.shape[0]}: both must see the same batch"
        )
    if positions == "pooled" or tokens == "class":
        return _pooled(student, tokens, mask), _pooled(teacher, tokens, mask if teacher_mask is None else teacher_mask)
    for side, layer in (("student", student), ("teacher", teacher)):
        if layer.layout == "nc":
            raise ValueError(
                f"positions='all' needs layers with positions, but {layer.name} ({side}) has the shape "
                f"{tuple(layer.tensor.shape)}: choose a layer before pooling, or positions='pooled'"
            )
    if student.is_text != teacher.is_text:
        raise ValueError(
            f"positions='all' cannot pair the positions of a text with those of an image ({student.name}, "
            f"{teacher.name}): use positions='pooled'"
        )
    if student.is_text:
        return _kept_tokens(student, teacher, None if padded else mask)
    return _image_positions(student, teacher, tokens)


def kept_rows(student: Activation, *, positions: str, tokens: str, mask: Tensor | None) -> Tensor | None:
    """(samples,) 1 for the rows of `pair_neurons(..., padded=True)` that count, and 0 for padding; None: all count.

    Args:
        student: The student's layer.
        positions, tokens, mask: As for `pair_neurons`.

    Raises:
        ValueError: a mask of another shape than the layer's (texts, tokens).
    """
    if mask is None or positions == "pooled" or tokens == "class" or not student.is_text:
        return None
    return _checked(mask, student).ne(0).flatten().to(student.tensor.device, torch.float32)


def pair_maps(student: Activation, teacher: Activation) -> tuple[Tensor, Tensor]:
    """A student's and a teacher's layer as maps over the same positions of the same images.

    Tokens of a transformer are positions (its patches); two grids of different sizes are both averaged down to the
    coarser one.

    Args:
        student: The student's layer.
        teacher: The teacher's layer, for the same batch.

    Returns:
        (n, c_s, positions) and (n, c_t, positions).

    Raises:
        ValueError: batches of different sizes, layers without positions, or layers of texts.
    """
    n = student.tensor.shape[0]
    if student.is_text or teacher.is_text:
        raise ValueError(f"{student.name} and {teacher.name}: maps over positions are for images, not for texts")
    for side, layer in (("student", student), ("teacher", teacher)):
        if layer.layout == "nc":
            raise ValueError(
                f"{layer.name} ({side}) is pooled, of shape {tuple(layer.tensor.shape)}, and a map has positions: "
                'choose layers before pooling, as layer_pairs="stages" does'
            )
    s, t = pair_neurons(student, teacher, positions="all", tokens="patches")
    return tuple(x.unflatten(0, (n, -1)).transpose(1, 2) for x in (s, t))  # (n p, c) -> (n, c, p)


def pooled_neurons(layer: Activation, *, tokens: str = "auto", mask: Tensor | None = None) -> Tensor:
    """(n, c): one row per image or text, as `pair_neurons` pools each side of a pair."""
    _check("tokens", tokens, TOKENS)
    return _pooled(layer, tokens, mask)


def _check(name: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, legal))}, got {value!r}")


def _pooled(layer: Activation, tokens: str, mask: Tensor | None) -> Tensor:
    """(n, c): one row per image or text."""
    x = layer.tensor
    if layer.layout == "nc":
        return x
    if layer.layout in ("nchw", "nhwc"):
        # float32 sums: a mean over thousands of positions in half precision would be rounded to 3 digits
        return x.mean(dim=(2, 3) if layer.layout == "nchw" else (1, 2), dtype=_sum_dtype(x))
    x = layer.sequence()
    if tokens == "class" or (tokens == "auto" and layer.reads_class):
        return _class_token(layer, mask)
    if layer.is_text:
        return x.mean(1, dtype=_sum_dtype(x)) if mask is None else _masked_mean(x, _checked(mask, layer))
    if layer.kept is not None:
        return _masked_mean(x, layer.kept)
    start = 0 if tokens == "all" else layer.prefix
    return x[:, start:].mean(1, dtype=_sum_dtype(x))


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _class_token(layer: Activation, mask: Tensor | None) -> Tensor:
    x = layer.sequence()
    has_one = layer.tokens.class_token is not None and (layer.is_text or layer.prefix > 0)
    if not has_one:
        raise ValueError(f"tokens='class': {layer.name} has no class token: use 'auto', 'patches' or 'all'")
    if layer.tokens.class_token == "first":
        return x[:, 0]
    if mask is None:
        return x[:, -1]
    steps = torch.arange(x.shape[1], device=x.device)
    last = (_checked(mask, layer).to(x.device).ne(0) * steps).argmax(1)
    return x.gather(1, last[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)


def _masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    keep = mask.to(x.device).ne(0)
    count = keep.sum(1, keepdim=True).clamp_min(1)
    # Filled, not weighted by 0: what a model computes at padded positions can be infinite.
    return x.masked_fill(~keep[..., None], 0).sum(1, dtype=_sum_dtype(x)) / count  # (n, l, c) -> (n, c)


def _checked(mask: Tensor, layer: Activation) -> Tensor:
    shape = tuple(layer.sequence().shape[:2])
    if tuple(mask.shape) != shape:
        raise ValueError(
            f"the attention mask has the shape {tuple(mask.shape)}, but {layer.name} has {shape} (texts, tokens): "
            "expected one entry per token"
        )
    return mask


def _kept_tokens(student: Activation, teacher: Activation, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    s, t = student.sequence(), teacher.sequence()
    if s.shape[1] != t.shape[1]:
        raise ValueError(
            f"positions='all' pairs token with token, but {student.name} (student) has {s.shape[1]} and {teacher.name} "
            f"(teacher) {t.shape[1]} tokens: both models need the same tokenisation, or use positions='pooled'"
        )
    if mask is None:
        return s.flatten(0, 1), t.flatten(0, 1)
    keep = _checked(mask, student).to(s.device).ne(0)
    kept = keep.flatten().nonzero().squeeze(1)  # one wait for the device, not one per side
    return s.flatten(0, 1).index_select(0, kept), t.flatten(0, 1).index_select(0, kept.to(t.device))


def _image_positions(student: Activation, teacher: Activation, tokens: str) -> tuple[Tensor, Tensor]:
    layers = (student, teacher)
    for layer in layers:
        if layer.kept is not None and layer.grid is None:
            raise ValueError(
                f"the images of a batch have different grids of patches in {layer.name}, so that their positions "
                "cannot be laid over the other model's: use positions='pooled', or images of one size"
            )
    if all(layer.layout in ("nlc", "ncl") for layer in layers):
        s, t = student.sequence(), teacher.sequence()
        aligned = s.shape[1] == t.shape[1] and student.prefix == teacher.prefix and student.grid == teacher.grid
        padded = any(layer.kept is not None for layer in layers)
        if aligned and not padded:  # also where the grid is not known: the same model family, position by position
            start = 0 if tokens == "all" else student.prefix
            return s[:, start:].flatten(0, 1), t[:, start:].flatten(0, 1)
    if tokens == "all" and any(layer.layout in ("nlc", "ncl") and layer.prefix for layer in layers):
        raise ValueError(
            f"ot_tokens='all' with every position as a sample needs the same tokens on both sides, but {student.name} "
            f"(student) and {teacher.name} (teacher) differ in them: use 'patches'"
        )
    s, t = _map(student), _map(teacher)
    grid = (min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3]))
    return _rows(s, grid), _rows(t, grid)


def _map(layer: Activation) -> Tensor:
    """(n, c, h, w), a view."""
    if layer.layout == "nchw":
        return layer.tensor
    if layer.layout == "nhwc":
        return layer.tensor.permute(0, 3, 1, 2)
    if layer.grid is None:
        raise ValueError(
            f"the {layer.tensor.shape[1]} tokens of {layer.name} have no known grid, so that they cannot be laid over "
            "the other model's positions: use positions='pooled', or write path:prefixN with the number of tokens that "
            "are no patches"
        )
    return layer.sequence()[:, layer.prefix :].transpose(1, 2).unflatten(2, layer.grid)


def _rows(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(n, c, h, w) -> (n * positions of the grid, c)."""
    if tuple(x.shape[2:]) != grid:
        x = adaptive_avg_pool2d(x, grid)
    return x.permute(0, 2, 3, 1).flatten(0, 2)
