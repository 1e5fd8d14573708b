"""What is known of a model, a data set, a start and a speed."""

from __future__ import annotations

from dataclasses import dataclass, field

from .licenses import License


@dataclass
class Speed:
    """A measured forward speed.

    Attributes:
        samples_per_second: Images or texts a second.
        batch_size: Samples in a forward pass.
        input: Shape of one sample, such as "3 x 224 x 224".
        device: What it ran on.
        dtype: Data type of the weights.
    """

    samples_per_second: float
    batch_size: int
    input: str
    device: str
    dtype: str


@dataclass
class Start:
    """Where a student's weights started.

    Attributes:
        kind: "hub", "folder", "scratch" (new random weights), or "unrecorded": made in the process that trained it, in
            a way that nobody wrote down.
        name: Hub id, or the name of the folder.
        revision: Commit on the Hub.
        license: Licence of those weights.
        new_classes: Of how many classes the head did not come from there, and had new random weights; None where it
            came from there, or nobody knows.
    """

    kind: str = "unrecorded"
    name: str | None = None
    revision: str | None = None
    license: License | None = None
    new_classes: int | None = None


@dataclass
class ModelFacts:
    """What is known of a model.

    Attributes:
        name: Hub id, folder name, or what a module is called.
        architecture: Name of the class, or timm's name of the architecture.
        library: "transformers", "timm", "peft" or "torch".
        parameters: Number of parameters.
        origin: "hub", "folder" or "unrecorded".
        revision: Commit on the Hub.
        license: Licence of the weights.
        metrics: Its own evaluation on the student's evaluation data, where someone ran it.
        speed: Measured forward speed.
        share: Of a teacher among several: its share of what they teach, from 0 to 1.
        classes: Of a teacher of some classes: the student's classes that it knows.
        cache: Of a teacher whose features came from a cache: which.
    """

    name: str
    architecture: str
    library: str
    parameters: int
    origin: str = "unrecorded"
    revision: str | None = None
    license: License | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    speed: Speed | None = None
    share: float | None = None
    classes: list[str] | None = None
    cache: str | None = None


@dataclass
class DataFacts:
    """What is known of a data set.

    Attributes:
        name: What it is called.
        samples: How many.
        repo: Its hub id; None where it did not come from the Hub.
        config, revision, split: Which configuration, commit and split of it.
        license: Its licence.
        part: Of several that a student was evaluated on: what the run calls it.
    """

    name: str
    samples: int | None
    repo: str | None = None
    config: str | None = None
    revision: str | None = None
    split: str | None = None
    license: License | None = None
    part: str | None = None


@dataclass
class ExportFacts:
    """A student in another format, and how it compares with the student.

    Attributes:
        file: Where it lies, below the student's folder.
        bytes: Its size.
        sha256: Its digest: what a push sends is what was compared.
        opset: Version of ONNX's operators.
        images: How many images both were run on.
        tolerance, difference: The largest difference of the outputs, relative to the largest number: allowed and found.
        runtime: What ran it.
        speed, torch_speed: Measured on the same batch, of the export and of the student in PyTorch.
    """

    file: str
    bytes: int
    sha256: str
    opset: int
    images: int
    tolerance: float
    difference: float
    runtime: str
    speed: Speed | None = None
    torch_speed: Speed | None = None

    def rows(self) -> list[tuple[str, str]]:
        """Names and values, for a table."""
        rows = [
            ("size", f"{self.bytes / 1e6:,.1f} MB"),
            ("opset", str(self.opset)),
            ("largest difference", f"{self.difference:.2g} of the largest output ({self.tolerance:.2g} is allowed)"),
            ("checked on", f"{self.images} images, {self.runtime}"),
        ]
        for name, speed in (("speed", self.speed), ("speed in PyTorch", self.torch_speed)):
            if speed is not None:
                size = f"batches of {speed.batch_size}, {speed.device}"
                rows.append((name, f"{speed.samples_per_second:,.1f} images a second ({size})"))
        return rows
