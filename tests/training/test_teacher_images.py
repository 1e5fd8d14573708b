"""Teachers that see images of another size, run compiled or lie on the CPU, in training and from a cache."""

import pytest
import timm
import torch
from torch.testing import assert_close
from transformers import Siglip2ImageProcessor, Siglip2VisionConfig, Siglip2VisionModel, ViTImageProcessor

from hf_reprot import OTTransferConfig, Teacher
from hf_reprot.cache import FeatureCache
from hf_reprot.cache.manifest import CacheError
from hf_reprot.data.preprocessing import Preprocessing
from hf_reprot.training.teacher_images import settle_image_sizes
from tests.toy_models import IMAGE, Images, convnext, resnet, timm_vit, vit
from tests.training.runs import make_config, make_trainer, training_logs

QUICK = {"max_steps": 2, "logging_steps": 1, "learning_rate": 1e-2}


def processor() -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": IMAGE, "width": IMAGE})


def naflex() -> Siglip2VisionModel:
    torch.manual_seed(0)
    config = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return Siglip2VisionModel(Siglip2VisionConfig(**config, num_patches=16, patch_size=8))


def timm_teacher() -> torch.nn.Module:
    torch.manual_seed(1)
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **settings)


def losses(trainer) -> list[float]:
    trainer.train()
    return [entry["ot_loss"] for entry in training_logs(trainer)]


def given(**more):
    return {"trainer": {"processing_class": processor()}, **QUICK, **more}


@pytest.mark.parametrize(
    ("teacher", "side"),
    [(lambda: vit(seed=1, image=32), 16), (timm_teacher, 32), (lambda: resnet(seed=1), 32), (naflex, 32)],
    ids=["transformers", "timm", "CNN", "NaFlex"],
)
def test_auto_makes_both_grids_equal(tmp_path, teacher, side):
    """The student has 4 x 4 patches of 4 pixels; every position is compared with its own."""
    trainer = make_trainer(tmp_path, teacher=teacher(), teacher_image_size="auto", ot_positions="all", **given())
    (ready,) = trainer.teachers
    assert ready.image_size in (None, (side, side))  # None: it was equal already
    found = {}
    tables = trainer.transfer.layers.tables
    trainer.transfer.layers.tables = lambda s, t, *more: found.update(s=s, t=t) or tables(s, t, *more)
    assert all(loss > 0 for loss in losses(trainer))
    grid = tuple(found["t"].tensor.shape[2:]) if found["t"].layout == "nchw" else found["t"].grid
    assert grid == found["s"].grid == (4, 4)


def test_a_size_in_pixels_and_a_teacher_with_its_own(tmp_path):
    teachers = [vit(seed=1, image=32), Teacher(convnext(seed=2), image_size=24)]
    trainer = make_trainer(tmp_path, teacher=teachers, teacher_image_size=48, **given())
    assert [teacher.image_size for teacher in trainer.teachers] == [(48, 48), (24, 24)]
    batch = {"pixel_values": torch.zeros(2, 3, IMAGE, IMAGE)}
    seen = [t.inputs_for(batch, trainer.preprocessing)["pixel_values"].shape[-1] for t in trainer.teachers]
    assert seen == [48, 24]


def test_sizes_that_cannot_be(tmp_path):
    for size in ("big", 0, -3, 1.5, True):
        with pytest.raises(ValueError, match="teacher_image_size must be"):
            OTTransferConfig(output_dir=str(tmp_path), teacher_image_size=size)
    assert OTTransferConfig(output_dir=str(tmp_path), teacher_image_size="224").teacher_image_size == 224
    with pytest.raises(ValueError, match="next sizes are 12 and 16"):
        make_trainer(tmp_path, teacher=vit(seed=1, image=32), teacher_image_size=15, **given())
    with pytest.raises(ValueError, match="give its image processor as processing_class"):
        make_trainer(tmp_path, model=resnet(), teacher=vit(seed=1), teacher_image_size="auto")


def test_auto_for_a_student_whose_grid_a_teacher_cannot_have():
    args = OTTransferConfig(output_dir="x", teacher_image_size="auto")
    teacher = Teacher(timm.create_model("levit_128s", num_classes=0))
    with pytest.raises(ValueError, match="448 x 448 pixels: LevitDistilled takes 224 x 224 only"):
        settle_image_sizes(args, vit(image=32), [teacher], Preprocessing(size=(32, 32)))  # 8 x 8 patches


# ---- the same loss, wherever and however the teacher runs ----


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return losses(make_trainer(tmp_path_factory.mktemp("plain"), teacher=vit(seed=1, image=32), **given()))


def test_an_offloaded_teacher_teaches_the_same(tmp_path, plain):
    trainer = make_trainer(tmp_path, teacher=vit(seed=1, image=32), teacher_offload=True, **given())
    assert losses(trainer) == plain
    assert {p.device.type for p in trainer.teachers[0].model.parameters()} == {"cpu"}
    with pytest.raises(ValueError, match="leave one of them out"):
        make_trainer(tmp_path, teacher_offload=True, teacher_sharded=True)


def test_a_compiled_teacher_teaches_the_same(tmp_path, plain):
    trainer = make_trainer(tmp_path, teacher=vit(seed=1, image=32), teacher_compile="eager", **given())
    assert trainer.teachers[0].model._compiled_call_impl is not None
    assert_close(torch.tensor(losses(trainer)), torch.tensor(plain))
    with pytest.raises(ValueError, match="'inductor'"):
        make_trainer(tmp_path, teacher_compile="inductr")
    assert OTTransferConfig(output_dir="x", teacher_compile=True).teacher_compile == "inductor"


def test_a_teacher_in_bfloat16(tmp_path, plain):
    trainer = make_trainer(tmp_path, teacher=vit(seed=1, image=32), teacher_dtype="bfloat16", **given())
    assert trainer.teachers[0].dtype == torch.bfloat16
    assert_close(torch.tensor(losses(trainer)), torch.tensor(plain), rtol=0.1, atol=0)


# ---- from a cache ----


class Collated:
    """Images that are prepared, behind a processor that says how."""

    processor = processor()

    def __call__(self, rows):
        return torch.utils.data.default_collate(rows)


@pytest.mark.parametrize("kind", ["size", "patches"])
def test_a_cache_holds_what_the_teacher_sees(tmp_path, kind):
    data = Images(8)

    def teacher():
        return Teacher(timm_vit(seed=1), image_size=24) if kind == "size" else Teacher(naflex())

    options = {"collator": Collated(), "dtype": "float32", "batch_size": 8, "progress": False, "device": "cpu"}
    cache = FeatureCache.build(teacher(), data, tmp_path / "features", **options)
    common = {"data": data, "per_device_train_batch_size": 8, **given()}
    common["trainer"]["data_collator"] = Collated()
    live = losses(make_trainer(tmp_path, teacher=teacher(), **common))
    common["trainer"]["teacher_features"] = cache
    cached = losses(make_trainer(tmp_path, teacher=teacher(), **common))
    assert_close(torch.tensor(cached), torch.tensor(live), rtol=1e-4, atol=0)
    other = teacher()
    if kind == "size":
        with pytest.raises(CacheError, match="of 24 x 24 pixels"):
            make_trainer(tmp_path, teacher=[], teacher_image_size=32, **common)
        other = Teacher(timm_vit(seed=1))
    else:
        own = Siglip2ImageProcessor(patch_size=8, max_num_patches=9)
        other = Teacher(naflex(), preprocessing=own)
    with pytest.raises(CacheError, match=r"other (images|weights)"):
        make_trainer(tmp_path, teacher=other, **common)
    with pytest.raises(ValueError, match="teacher_offload is about a teacher's weights"):
        make_trainer(tmp_path, teacher=[], teacher_offload=True, **common)


def test_a_cache_of_another_size_does_not_go_on_in_the_folder(tmp_path):
    options = {"dtype": "float32", "batch_size": 4, "progress": False, "device": "cpu"}
    FeatureCache.build(Teacher(resnet(), image_size=24), Images(4), tmp_path / "f", **options)
    with pytest.raises(CacheError, match="teacher_size"):
        FeatureCache.build(Teacher(resnet(), image_size=32), Images(4), tmp_path / "f", **options)


def test_config_of_a_run_keeps_the_size(tmp_path):
    assert make_config(tmp_path, teacher_image_size="auto").transfer_settings()["teacher_image_size"] == "auto"
