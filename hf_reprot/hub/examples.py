"""Code in a card that loads the student, without this package."""

from __future__ import annotations

from dataclasses import dataclass

from .foreign import repo_of, word_of
from .record import RunRecord

_AUTO_CLASSES = {
    "image-classification": "AutoModelForImageClassification",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-segmentation": "AutoModelForSemanticSegmentation",
    "image-feature-extraction": "AutoModel",
    "audio-classification": "AutoModelForAudioClassification",
}


@dataclass
class Example:
    """A few lines of code and what they are for."""

    title: str
    code: str


def loading_examples(record: RunRecord, repo: str) -> list[Example]:
    """How to load a student from a repository with the libraries that can."""
    if record.student.library == "peft":
        return [Example("With peft (the adapter goes on the weights that it was trained on):", _peft(record, repo))]
    examples = []
    if record.student.library in ("transformers", "timm"):
        if record.task is not None and word_of(record.task) is not None:
            examples.append(Example("With transformers, in one call:", _pipeline(record.task, repo)))
        examples.append(Example("With transformers, model and preprocessing apart:", _auto(record, repo)))
    if record.student.library == "timm":
        examples.append(Example("With timm:", _timm(record, repo)))
    return examples or [Example("The weights:", _weights(repo))]


def _pipeline(task: str, repo: str) -> str:
    given = {
        "image-classification": '"photo.jpg"',
        "image-segmentation": '"photo.jpg"',
        "image-feature-extraction": '"photo.jpg"',
        "audio-classification": '"sound.wav"',
    }
    return (
        "from transformers import pipeline\n\n"
        f'model = pipeline("{task}", model="{repo}")\n'
        f"print(model({given.get(task, repr('A sentence.'))}))"
    ).replace("'A sentence.'", '"A sentence."')


def _auto(record: RunRecord, repo: str) -> str:
    auto = _AUTO_CLASSES.get(record.task or "", "AutoModel")
    if record.task is not None and record.task.startswith(("text", "token")):
        return (
            f"from transformers import {auto}, AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{repo}")\n'
            f'model = {auto}.from_pretrained("{repo}").eval()\n'
            'logits = model(**tokenizer("A sentence.", return_tensors="pt")).logits'
        )
    if record.task is not None and record.task.startswith("image"):
        features = record.task == "image-feature-extraction"
        backbone = record.student.architecture.endswith("Backbone")
        auto = "AutoBackbone" if backbone else auto
        last = "feature_maps[-1]" if backbone else "last_hidden_state"
        answer = f"features = model(**inputs).{last}\nprint(features.shape)"
        return (
            "from PIL import Image\n"
            f"from transformers import AutoImageProcessor, {auto}\n\n"
            f'processor = AutoImageProcessor.from_pretrained("{repo}")\n'
            f'model = {auto}.from_pretrained("{repo}").eval()\n'
            'inputs = processor(Image.open("photo.jpg").convert("RGB"), return_tensors="pt")\n'
            + (answer if features else "logits = model(**inputs).logits\n" + _answer(record, "model.config.id2label"))
        )
    return f'from transformers import {auto}\n\nmodel = {auto}.from_pretrained("{repo}").eval()'


def _answer(record: RunRecord, names: str) -> str:
    """The line that prints what the logits of one image say."""
    if record.problem_type == "regression":
        return "print(logits[0].tolist())"
    if record.problem_type == "multi_label_classification":
        return f"print([{names}[i] for i in (logits[0] > 0).nonzero().flatten().tolist()])"
    return f"print({names}[logits.argmax(-1).item()])"


def _timm(record: RunRecord, repo: str) -> str:
    features = record.task == "image-feature-extraction"
    result, answer = ("features", "print(features.shape)") if features else ("logits", None)
    no_head = ", num_classes=0" if features else ""
    return (
        "import timm\n"
        "from PIL import Image\n\n"
        f'model = timm.create_model("hf-hub:{repo}", pretrained=True{no_head}).eval()\n'
        "settings = timm.data.resolve_model_data_config(model)\n"
        "transform = timm.data.create_transform(**settings, is_training=False)\n"
        f'{result} = model(transform(Image.open("photo.jpg").convert("RGB")).unsqueeze(0))\n'
        + (answer or _answer(record, 'model.pretrained_cfg["label_names"]'))
    )


def _peft(record: RunRecord, repo: str) -> str:
    auto = _AUTO_CLASSES.get(record.task or "", "AutoModel")
    start = (repo_of(record.start.name) if record.start.kind == "hub" else None) or "the weights it started from"
    head = f", num_labels={record.classes}, ignore_mismatched_sizes=True" if record.classes is not None else ""
    return (
        "from peft import PeftModel\n"
        f"from transformers import {auto}\n\n"
        f'model = {auto}.from_pretrained("{start}"{head})\n'
        f'model = PeftModel.from_pretrained(model, "{repo}").eval()'
    )


def _weights(repo: str) -> str:
    return (
        "from huggingface_hub import hf_hub_download\n"
        "from safetensors.torch import load_file\n\n"
        f'weights = load_file(hf_hub_download("{repo}", "model.safetensors"))'
    )
