"""How large the problems are: at full size, and in a rehearsal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Sizes of every part's problems.

    Attributes:
        device: "cuda", or "cpu" in a rehearsal.
        copied: Numbers of a copy. product: Rows of a matrix product.
        tests: What pytest is asked for besides the mark.
        shapes: Of the solver's problems: (pairs x) student neurons x teacher neurons. samples: That costs are from.
        epsilons: Relative ones.
        seconds: Of a solver in a table at most, and of the search for its loosest setting.
        turns: In which what is compared takes turns.
        teachers: timm's names. student: The same. image: Pixels. batches: Images a step.
        cases: Names in `benchmarks.training.CASES`. half: In bfloat16. warm: Steps in `Trainer` that do not count.
        images: Of the small training, at most. epochs: Of it. small_teacher, small_student: Its models, of timm.
    """

    device: str
    copied: int
    product: int
    tests: tuple[str, ...]
    shapes: tuple[str, ...]
    samples: int
    epsilons: tuple[float, ...]
    seconds: float
    turns: int
    teachers: tuple[str, ...]
    student: str
    image: int
    batches: tuple[int, ...]
    cases: tuple[str, ...]
    half: bool
    warm: int
    images: int
    epochs: int
    small_teacher: str
    small_student: str


FULL = Sizes(
    device="cuda",
    copied=1 << 28,
    product=8192,
    tests=(),
    shapes=("12x384x384", "512x2048", "2048x2048", "256x256"),
    samples=1024,
    epsilons=(0.01, 0.05),
    seconds=1.5,
    turns=9,
    teachers=("vit_small_patch16_224", "vit_base_patch16_224"),
    student="resnet18",
    image=224,
    batches=(64, 256),
    cases=("last layer", "stages", "last layer, every position", "stages, every position"),
    half=True,
    warm=5,
    images=1497,
    epochs=8,
    small_teacher="resnet18",
    small_student="resnet10t",
)
TOY = Sizes(
    device="cpu",
    copied=1 << 16,
    product=64,
    tests=("-k", "random_shapes"),
    shapes=("2x8x12",),
    samples=64,
    epsilons=(0.05,),
    seconds=0.02,
    turns=1,
    teachers=("test_vit",),
    student="test_resnet",
    image=32,
    batches=(4,),
    cases=("last layer",),
    half=False,
    warm=1,
    images=96,
    epochs=1,
    small_teacher="test_resnet",
    small_student="test_resnet",
)
