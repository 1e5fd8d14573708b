"""`hf-reprot` on the command line. Every command is a function that can be called from Python."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .settings.completion import CacheCommand, TrainCommand
from .settings.names import COMPARED_LAYERS, POSITIONS
from .utils.messages import check_choice

# Nothing above imports torch, transformers or the Hub's client: help, completion and mistakes answer at once.

app = typer.Typer(
    name="hf-reprot",
    help="Transfer a teacher's representation to a student by optimal transport between neurons.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

console = Console()
# The base of all errors of usage; typer has a copy of the package click of its own, or uses click, by its version.
_Mistake: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; a user's mistake is one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except _Mistake as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            raise SystemExit(2) from None
        code = _mistake(error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except FloatingPointError as error:  # a run that went wrong, not a mistake in what was typed
        print(f"hf-reprot: {error}", file=sys.stderr)
        code = 1
    except Exception as error:
        if not _is_mistake(error):
            raise
        code = _mistake(" ".join(str(error).split()) or type(error).__name__)
    raise SystemExit(code or 0)


def _is_mistake(error: Exception) -> bool:
    """Whether an error comes from what a user gave, or from the world, and not from a fault of the package."""
    if isinstance(error, ValueError | TypeError | OSError):
        return True
    from safetensors import SafetensorError

    from .hub.errors import HubError

    return isinstance(error, HubError | SafetensorError)


def _mistake(message: str) -> int:
    from .hub.privacy import redact

    print(f"hf-reprot: error: {redact(message)}", file=sys.stderr)
    return 2


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Output folder for the figures and the trained student.")] = Path(
        "demo"
    ),
    seeds: Annotated[int, typer.Option(help="Number of seeds per method.", min=1)] = 2,
    labels: Annotated[int, typer.Option(help="Number of labelled images for the student.", min=10)] = 60,
    steps: Annotated[int, typer.Option(help="Training steps per run.", min=1)] = 100,
) -> None:
    """Two jobs on real images, with nothing to download: digits, a CNN teacher, a smaller ViT and a narrower CNN."""
    from .commands.demo import run_demo

    result = run_demo(folder, seeds=seeds, labels=labels, steps=steps)
    console.print(
        f"Test accuracy in %, mean ± deviation over {seeds} seeds; {labels} labels; teacher {result.teacher:.1%}, "
        f"which saw {result.images:,} labels",
        highlight=False,
    )
    for table in result.tables():
        console.print(table)
    for line in result.reading():
        console.print(line, highlight=False)
    for path in (*result.pictures, result.student, result.report):
        console.print(f"wrote {path}", highlight=False)
    console.print(f"took {result.seconds:.0f} s", highlight=False)


@app.command(
    cls=TrainCommand,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Train a student: hf-reprot train [RECIPE.yaml] [--processes N] [--setting value ...]; --help lists settings.",
)
def train(context: typer.Context) -> None:
    """Trains by a recipe, flags, or both."""
    arguments = list(context.args)
    if "--help" in arguments or "-h" in arguments:
        from .settings.help import print_train_help

        print_train_help(console)
        return
    recipe_file = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    processes = _pop_processes(arguments)
    from .settings.parsing import check_early

    check_early(arguments, recipe_file)
    if processes is not None:
        raise typer.Exit(_launch(processes, recipe_file, arguments))
    from .commands.train import parse_recipe, run_recipe

    result = run_recipe(*parse_recipe(arguments, recipe_file))
    result.trainer.accelerator.end_training()  # processes part in order, not while Python takes itself apart
    if not result.trainer.is_world_process_zero():
        return
    table = Table("result", "value")
    for name, value in result.metrics.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    console.print(table)
    console.print(f"wrote {result.folder}", highlight=False)
    if share := result.next_step():
        console.print(f"to share it, look at {result.folder}/README.md, then: {share}", highlight=False, soft_wrap=True)


@app.command(
    cls=CacheCommand,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Run a teacher once and keep its features: hf-reprot cache [RECIPE.yaml] --output_dir FOLDER [--setting value "
    "...]; --help lists settings.",
)
def cache(context: typer.Context) -> None:
    """Builds a feature cache for the training run that the same recipe and flags describe."""
    arguments = list(context.args)
    if "--help" in arguments or "-h" in arguments:
        from .settings.help import print_cache_help

        print_cache_help(console)
        return
    recipe_file = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    from .settings.cache import split_cache_options
    from .settings.parsing import check_early

    check_early(split_cache_options(arguments)[1], recipe_file)
    from .commands.cache import cache_recipe, parse_cache

    built = cache_recipe(*parse_cache(arguments, recipe_file))
    table = Table("cache", "value")
    for name, value in built.facts().items():
        table.add_row(name, value)
    console.print(table)
    console.print(f"wrote {built.folder}", highlight=False)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="Hub id or folder of a model.")],
    b: Annotated[str, typer.Argument(help="Hub id or folder of the model to compare it with.")],
    dataset: Annotated[str, typer.Option(help='Images: a hub id, a folder, or "digits".')],
    folder: Annotated[Path, typer.Option(help="Output folder for the numbers and heat maps.")] = Path("comparison"),
    samples: Annotated[int, typer.Option(help="Maximum number of images.", min=3)] = 256,
    split: Annotated[
        str | None, typer.Option(help="Split of the data set; default: test, validation, or the first.")
    ] = None,
    layers: Annotated[str, typer.Option(help='"blocks", "stages" or "last".')] = "blocks",
    positions: Annotated[str, typer.Option(help='"pooled" or "all".')] = "pooled",
    device: Annotated[str, typer.Option(help="Device to run the models on.")] = "cpu",
) -> None:
    """Compare two models' representations layer by layer, by transport between their neurons."""
    check_choice("layers", layers, COMPARED_LAYERS)
    check_choice("positions", positions, POSITIONS)
    from .commands.compare import compare_models

    found = compare_models(
        a, b, dataset, split=split, samples=samples, positions=positions, layers=layers, device=device
    )
    console.print(found.table())
    for path in found.save(folder):
        console.print(f"wrote {path}", highlight=False)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a student, or of any image model.")],
    dataset: Annotated[str, typer.Option(help='Labelled images: a hub id, a folder, or "digits".')],
    teacher: Annotated[list[str] | None, typer.Option(help="Another model beside it; may be repeated.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set.")] = None,
    samples: Annotated[int | None, typer.Option(help="Images at most.", min=3)] = None,
    neighbours: Annotated[int | None, typer.Option(help="k; default: by images and classes.", min=1)] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images in a forward pass.", min=1)] = 32,
    device: Annotated[str, typer.Option(help="Where the models run.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="File for the model's numbers, as JSON.")] = None,
) -> None:
    """How good a frozen representation is: k-NN, neighbour purity, linear probe; accuracy where there is a head."""
    from .commands.evaluate import evaluate_model, evaluation_table

    options: dict[str, Any] = {"split": split, "samples": samples, "neighbours": neighbours, "batch_size": batch_size}
    options |= {"device": device, "image_column": image_column, "label_column": label_column}
    found = [evaluate_model(source, dataset, **options) for source in (model, *(teacher or ()))]
    console.print(evaluation_table(found))
    for note in [f"{evaluation.model}: {note}" for evaluation in found for note in evaluation.notes]:
        console.print(note, highlight=False)
    if output is not None:
        console.print(f"wrote {found[0].save(output)}", highlight=False)


@app.command()
def export(
    student: Annotated[str, typer.Argument(help="A student's folder, or a hub id.")],
    format: Annotated[str, typer.Option(help='"onnx".')] = "onnx",
    output: Annotated[Path | None, typer.Option(help="Folder for onnx/model.onnx; default: the student's.")] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Images to check it on: a hub id or a folder; default: scikit-learn's photographs."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Number of images to check it on.", min=1)] = 16,
    tolerance: Annotated[float, typer.Option(help="Largest difference, relative to the largest output.")] = 1e-3,
    opset: Annotated[int | None, typer.Option(help="Version of ONNX's operators; default: torch's choice.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the images.")] = None,
    push_to: Annotated[str | None, typer.Option(help="Repository to push the folder to, with the export.")] = None,
) -> None:
    """Write a student as ONNX and check it against the student. Needs: pip install 'hf-reprot[onnx]'."""
    from .commands.export import export_student
    from .utils.messages import check_choice

    check_choice("format", format, ("onnx",))
    options: dict[str, Any] = {"dataset": dataset, "samples": samples, "tolerance": tolerance, "opset": opset}
    facts = export_student(student, output, image_column=image_column, **options)
    table = Table("export", "value")
    for name, value in facts.rows():
        table.add_row(name, value)
    console.print(table)
    place = Path(output or student)
    console.print(f"wrote {place / facts.file}", highlight=False)
    if push_to is not None:
        from .hub.push import push_folder

        console.print(f"pushed to {push_folder(place, push_to).commit_url}")


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(help="A trained student's folder.")],
    repository: Annotated[str | None, typer.Option(help="Repository that the card's code examples refer to.")] = None,
) -> None:
    """Regenerate a student's model card from its training record."""
    from .hub.card import rebuild_card

    console.print(f"wrote {rebuild_card(folder, repo_id=repository)}", highlight=False)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A trained student's folder.")],
    repository: Annotated[str, typer.Argument(help="name/student or organisation/student.")],
    private: Annotated[
        bool | None, typer.Option(help="Make the repository private; default: the account's setting.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    space: Annotated[
        bool,
        typer.Option("--space", help="Also push a page for it (Gradio Space, NAME-demo)."),
    ] = False,
) -> None:
    """Push a student to the Hub in one commit. The token comes from the environment or `hf auth login`."""
    from .hub.push import push_folder

    commit = push_folder(folder, repository, private=private, revision=revision)
    console.print(f"pushed to {commit.commit_url}")
    if space:
        import tempfile

        from .hub.space import push_space, write_space

        repo = commit.repo_url.repo_id
        with tempfile.TemporaryDirectory() as page:
            write_space(folder, page)
            console.print(f"pushed to {push_space(page, f'{repo}-demo', private=private)}")


@app.command()
def space(
    student: Annotated[str, typer.Argument(help="Repository or folder of a student.")],
    folder: Annotated[Path, typer.Option(help="Output folder for the page.")] = Path("space"),
    teacher: Annotated[str | None, typer.Option(help="Who stands beside it; default: its teachers on the Hub.")] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page; default: the student's name.")] = None,
    push: Annotated[str | None, typer.Option(help="Push the page as this Space, name/space.")] = None,
    private: Annotated[bool | None, typer.Option(help="Make the Space private.")] = None,
) -> None:
    """Make a page (Gradio Space) on which an image goes before a student and its teacher."""
    from .hub.space import push_space, write_space

    console.print(f"wrote {write_space(student, folder, teacher=teacher, title=title)}", highlight=False)
    if push is not None:
        console.print(f"pushed to {push_space(folder, push, private=private)}")


def _pop_processes(arguments: list[str]) -> int | None:
    """Takes `--processes N` out of the arguments."""
    for i, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--processes":
            del arguments[i]
            value = value or (arguments.pop(i) if i < len(arguments) else "")
            if not value.isdigit() or int(value) < 1:
                raise ValueError(f"--processes takes a number of processes, got {value or 'nothing'!r}")
            return int(value)
    return None


def _launch(processes: int, recipe_file: str | None, arguments: list[str]) -> int:
    """The same command in several processes, by torchrun: other ways start one process only where there is no GPU."""
    import torch

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "hf_reprot.cli", "train", *([recipe_file] if recipe_file else []), *arguments]
    if not torch.cuda.is_available() and not any(a.split("=")[0] == "--use_cpu" for a in arguments):
        command += ["--use_cpu", "true"]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    main()
