"""Training from a cache: as with the live teacher, or refused with the reason."""

import copy
import dataclasses
import re

import pytest
import torch
from torch.utils.data import Dataset

from hf_reprot import Teacher
from hf_reprot.cache import CacheError, FeatureCache
from hf_reprot.data.collator import ImageCollator
from tests.cache.samples import build, cached_trainer, mlp, photos, processor
from tests.toy_models import Images, resnet, timm_vit, vit
from tests.training.runs import make_trainer, training_logs, weights_of

WHOLE = {"max_steps": -1, "num_train_epochs": 2, "kd_weight": 0.5}


def _trained(trainer):
    trainer.train()
    return weights_of(trainer.model), [entry["loss"] for entry in training_logs(trainer)]


def _same(one, other) -> bool:
    return one[1] == other[1] and all(torch.equal(value, other[0][name]) for name, value in one[0].items())


@pytest.mark.parametrize("positions", ["pooled", "all"])
@pytest.mark.parametrize("teacher", [resnet, vit], ids=["ResNet", "ViT"])
def test_it_is_the_run_with_the_live_teacher_bit_for_bit(tmp_path, teacher, positions):
    settings = {**WHOLE, "ot_positions": positions, "layer_pairs": "stages"}
    live = _trained(make_trainer(tmp_path / "live", teacher=teacher(seed=1), **settings))
    cache = build(tmp_path / "c", teacher(seed=1), positions=positions == "all")
    assert cache.settings.bitwise
    assert _same(live, _trained(cached_trainer(tmp_path / "cached", cache, **settings)))
    half = build(tmp_path / "h", teacher(seed=1), positions=positions == "all", dtype="float16")
    weights, losses = _trained(cached_trainer(tmp_path / "half", half, **settings))
    assert not _same(live, (weights, losses))  # the comparison above can fail
    assert losses[:3] == pytest.approx(live[1][:3], rel=1e-3)  # later steps follow from earlier ones


def test_what_the_teacher_answers_is_known_as_of_the_live_one(tmp_path):
    teacher, student = resnet(seed=1), vit()
    teacher.config.problem_type = "multi_label_classification"
    student.config.problem_type = "single_label_classification"
    cache = build(tmp_path / "c", teacher)
    assert cache.settings.problem_type == "multi_label_classification"
    settings = {"model": student, "kd_weight": 0.5}
    for make in (
        lambda: make_trainer(tmp_path / "live", teacher=teacher, **settings),
        lambda: cached_trainer(tmp_path / "cached", cache, **settings),
    ):
        with pytest.raises(ValueError, match=r"problem_type is 'single_label.*and that of the teacher .*'multi_label"):
            make().train()
    earlier = dataclasses.replace(cache.settings, problem_type=None)  # as version 0.1 wrote it
    assert earlier.differences(cache.settings) == []


def test_whole_layers_serve_pooled_runs_and_other_losses(tmp_path):
    cache = build(tmp_path / "c", vit(seed=2), positions=True)
    for settings in ({"ot_tokens": "patches"}, {"feature_loss": "attention", "ot_weight": 0.0}, {"kd_method": "dkd"}):
        chosen = {**WHOLE, "layer_pairs": "stages", **settings}
        live = _trained(make_trainer(tmp_path / "live", teacher=vit(seed=2), **chosen))
        assert _same(live, _trained(cached_trainer(tmp_path / "cached", cache, **chosen)))


def test_flips_of_every_epoch_and_seed(tmp_path):
    data = photos(24)

    def run(folder, cache=None, **settings):
        collator = ImageCollator(processor(), augmentation="flip")
        more = {"processing_class": processor(), "data_collator": collator}
        if cache is None:
            return make_trainer(folder, data=data, trainer=more, layer_pairs="stages", **settings)
        return cached_trainer(folder, cache, data=data, trainer=more, **settings)

    flips = ImageCollator(processor(), augmentation="flip")
    cache = build(tmp_path / "c", data=data, collator=flips)
    assert [str(view) for view in cache.settings.views] == ["flip, not mirrored", "flip, mirrored"]
    for seed in (1, 8):
        settings = {**WHOLE, "seed": seed, "dataloader_num_workers": seed % 2}
        assert _same(_trained(run(tmp_path / "a", **settings)), _trained(run(tmp_path / "b", cache, **settings)))


def test_crops_of_the_cached_epochs_only(tmp_path):
    data, crops = photos(16), ImageCollator(processor(), augmentation="crop+flip")
    cache = build(tmp_path / "c", data=data, collator=crops, epochs=2, seed=3)
    more = {"processing_class": processor(), "data_collator": copy.copy(crops)}
    settings = {**WHOLE, "seed": 3, "data": data, "trainer": more}
    live = _trained(make_trainer(tmp_path / "live", layer_pairs="stages", **settings))
    assert _same(live, _trained(cached_trainer(tmp_path / "cached", cache, **settings)))
    for other, told in ({"num_train_epochs": 3}, "epoch 2, seed 3"), ({"seed": 4}, "epoch 1, seed 4"):
        with pytest.raises(
            CacheError, match=rf"the example is, in another view\. Cached: .*This run: crop\+flip, {told}"
        ):
            cached_trainer(tmp_path / "more", cache, **{**settings, **other})


class Moved(Dataset):
    """The rows of another data set in another order, some of them changed."""

    def __init__(self, data, order, changed=()):
        self.data, self.order, self.changed = data, order, changed

    def __len__(self):
        return len(self.order)

    def __getitem__(self, i):
        row = dict(self.data[self.order[i]])
        if i in self.changed:
            row["pixel_values"] = row["pixel_values"] + 1e-3
        return row


def test_a_reordered_data_set_gets_its_own_rows(tmp_path):
    data = Moved(Images(), torch.randperm(32, generator=torch.Generator().manual_seed(5)).tolist())
    cache = build(tmp_path / "c")  # in the old order
    live = _trained(make_trainer(tmp_path / "live", data=data, layer_pairs="stages", **WHOLE))
    assert _same(live, _trained(cached_trainer(tmp_path / "cached", cache, data=data, **WHOLE)))


def test_a_changed_data_set_is_refused(tmp_path):
    cache = build(tmp_path / "c")
    message = (
        "the example is not among the 32 of Images that were cached .*The data set has changed, or something makes"
    )
    with pytest.raises(
        CacheError, match=rf"row 15 of the batch is not in the feature cache .*{message}.*before training"
    ):
        cached_trainer(tmp_path / "a", cache, data=Moved(Images(), list(range(32)), changed={31}))
    hidden = Moved(Images(), list(range(32)), changed={30})  # none of those that are looked at before training
    trainer = cached_trainer(tmp_path / "b", cache, data=hidden, **WHOLE)
    with pytest.raises(CacheError, match=message):
        trainer.train()
    data = photos(24)
    pictures = build(tmp_path / "p", data=data, processor=processor())
    other = photos(24, seed=9)
    with pytest.raises(CacheError, match="The data set has changed: build the cache for this one"):
        cached_trainer(tmp_path / "c", pictures, data=other, trainer={"processing_class": processor()})


def test_augmentation_that_was_not_cached_is_refused(tmp_path):
    data = photos(24)
    cache = build(tmp_path / "c", data=data, processor=processor())
    flips = ImageCollator(processor(), augmentation="flip")
    told = "the example is, in another view. Cached: no augmentation. This run: flip, epoch 0, seed 42"
    more = {"processing_class": processor(), "data_collator": flips}
    with pytest.raises(CacheError, match=re.escape(told)):
        cached_trainer(tmp_path / "a", cache, data=data, trainer=more)


def test_other_preprocessing_is_refused(tmp_path):
    data = photos(24)
    cache = build(tmp_path / "c", data=data, processor=processor())
    refused = [
        (processor(mean=0.4), r"mean \[0.5, 0.5, 0.5\] there and \[0.4, 0.4, 0.4\] here"),
        (processor(size=20), r"size \[16, 16\] there and \[20, 20\] here"),
    ]
    for other, message in refused:
        with pytest.raises(CacheError, match=f"built with other preprocessing: .*{message}"):
            cached_trainer(tmp_path / "a", cache, model=resnet(), data=data, trainer={"processing_class": other})


def test_layers_that_are_not_there_are_refused(tmp_path):
    cache = build(tmp_path / "c", vit(seed=2), layers=["vit.layers.0"])
    refused = {
        "does not hold the layer classifier:input: it holds vit.layers.0": {"layer_pairs": "last"},
        "does not hold the layer vit.layers.1": {"layer_pairs": "vit.layers.1=vit.layers.-1"},
        "'vit.layers.2' is no layer of the teacher": {"layer_pairs": "vit.layers.1=vit.layers.2"},
        "holds pooled features, and ot_positions='all' needs": {"ot_positions": "all"},
        "holds pooled features, and feature_loss='attention' needs": {"feature_loss": "attention"},
        "was pooled with tokens='auto', and the run has ot_tokens='class'": {"ot_tokens": "class"},
        'layer_pairs="auto" runs the teacher': {"layer_pairs": "auto"},
        "delta_weight compares student and teacher before training": {"delta_weight": 1.0},
        "holds no logits: set kd_weight=0": {"kd_weight": 1.0},
    }
    bare = build(tmp_path / "bare", vit(seed=2), layers=["vit.layers.0"], logits=False)
    for message, settings in refused.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            cached_trainer(tmp_path / "a", bare if "kd_weight" in settings else cache, **settings)
    cached_trainer(tmp_path / "a", cache, layer_pairs="vit.layers.1=layers.-2")  # counted in the teacher, not the cache


def test_another_teacher_is_refused(tmp_path):
    teacher = resnet(seed=1)
    cache = build(tmp_path / "c", teacher)
    cached_trainer(tmp_path / "a", cache, teacher=copy.deepcopy(teacher))
    with pytest.raises(CacheError, match="teacher_model has other weights"):
        cached_trainer(tmp_path / "a", cache, teacher=resnet(seed=2))
    with pytest.raises(ValueError, match=r"has 1 cache\(s\) and teacher_model 2 teacher\(s\)"):
        cached_trainer(tmp_path / "a", cache, teacher=[resnet(seed=1), resnet(seed=2)])
    named = Teacher(copy.deepcopy(teacher), name="org/teacher", revision="a" * 40)
    hub = build(tmp_path / "hub", named)
    cached_trainer(tmp_path / "a", hub, teacher="org/teacher@" + "a" * 40)  # nothing is loaded: it does not exist
    cached_trainer(tmp_path / "a", hub, teacher="org/teacher")
    with pytest.raises(CacheError, match=f"is of org/teacher at revision {'a' * 40}, and the run asks for {'b' * 40}"):
        cached_trainer(tmp_path / "a", hub, teacher="org/teacher@" + "b" * 40)
    with pytest.raises(CacheError, match="is of the teacher org/teacher@aaaaaaaaaaaa, not of org/other"):
        cached_trainer(tmp_path / "a", hub, teacher="org/other")


def test_no_teacher_is_there(tmp_path):
    cache = build(tmp_path / "c", timm_vit(seed=2), layers="last")
    trainer = cached_trainer(tmp_path / "a", str(tmp_path / "c"), layer_pairs="last", kd_weight=1.0)
    trainer.train()
    (teacher,) = trainer.teachers
    assert sum(p.numel() for p in teacher.model.parameters()) == 0
    assert [pair.teacher for pair in trainer.transfer.pairs] == list(cache.layers)
    trainer.evaluate(Images(8))  # in evaluation, nothing is looked up: these images are not in the cache
    record = trainer.collect_record()
    assert record.teachers[0].parameters == sum(p.numel() for p in timm_vit().parameters())
    assert record.teachers[0].cache == f"32 rows, pooled, float32, SHA-256 {cache.digest[:16]}"
    trainer.create_model_card()
    assert (
        f"from a cache: 32 rows, pooled, float32, SHA-256 {cache.digest[:16]}" in (tmp_path / "a/README.md").read_text()
    )


def test_several_caches(tmp_path):
    ours, theirs = build(tmp_path / "1"), build(tmp_path / "2", vit(seed=2))
    settings = {**WHOLE, "layer_pairs": "stages"}
    live = _trained(make_trainer(tmp_path / "live", teacher=[resnet(seed=1), vit(seed=2)], **settings))
    assert _same(live, _trained(cached_trainer(tmp_path / "cached", [ours, theirs], **settings)))

    def weighed():
        return [Teacher(resnet(seed=1), weight=3.0), Teacher(vit(seed=2))]

    other = _trained(make_trainer(tmp_path / "live", teacher=weighed(), **settings))
    assert not _same(live, other)
    assert _same(other, _trained(cached_trainer(tmp_path / "cached", [ours, theirs], teacher=weighed(), **settings)))
    with pytest.raises(ValueError, match="'resize' is said when the cache is built"):
        cached_trainer(tmp_path / "a", ours, teacher=[{"id": "org/teacher", "resize": True}])
    with pytest.raises(ValueError, match="teacher_sharded is about a teacher's weights, and teacher_features has none"):
        cached_trainer(tmp_path / "a", ours, teacher_sharded=True)


def test_a_batch_from_elsewhere_is_refused(tmp_path):
    trainer = cached_trainer(tmp_path, build(tmp_path / "c"))
    rows = [Images()[i] for i in range(8)]
    plain = trainer.data_collator.collator(rows)
    with pytest.raises(ValueError, match="the batch lacks the cached features of"):
        trainer.compute_loss(trainer.model.train(), plain)


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    settings = {**WHOLE, "layer_pairs": "stages", "save_strategy": "steps", "save_steps": 3, "plan_momentum": 0.9}
    cache = build(tmp_path / "c")
    whole = _trained(cached_trainer(tmp_path / "whole", cache, **settings))
    trainer = cached_trainer(tmp_path / "whole", FeatureCache(tmp_path / "c"), **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert _same((whole[0], []), (weights_of(trainer.model), []))


def test_a_plain_module_and_default_collator(tmp_path):
    cache = build(tmp_path / "c", mlp(), layers=["2"])
    settings = {**WHOLE, "layer_pairs": "last=2"}
    live = _trained(make_trainer(tmp_path / "live", teacher=mlp(), **settings))
    assert _trained(cached_trainer(tmp_path / "cached", cache, **settings))[1] == pytest.approx(live[1], rel=1e-6)
