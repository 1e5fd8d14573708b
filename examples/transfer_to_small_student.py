"""A small new student on a new task with few labels, taught by a pretrained model that never saw the task.

    python -m examples.carriers efficientnet-lite0 models/lite0
    python -m examples.carriers photo-cutouts data/cutouts
    python examples/transfer_to_small_student.py --teacher models/lite0 --dataset data/cutouts

The teacher's classes are others than the student's, so that only its representation can be transferred. Any hub id
goes in the place of `--teacher`; `--ot-weight 0` is training from scratch, `--method random` the control. With
`--label-free`, the student first learns the representation from all images, and then only its head from `--labels`.
"""

from __future__ import annotations

import argparse

from transformers import TimmWrapperImageProcessor, set_seed

from hf_reprot import ImageCollator, OTTransferConfig, OTTransferTrainer, create_timm_student, load_image_dataset
from hf_reprot.data.dataset_columns import image_columns
from hf_reprot.data.labels import label_names
from hf_reprot.utils.running import accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="hub id or folder of a pretrained model")
    parser.add_argument("--dataset", required=True, help='hub id, folder, or "digits"')
    parser.add_argument("--student", default="regnetx_002", help="timm's name of an architecture")
    parser.add_argument("--output", default="students/small")
    parser.add_argument("--ot-weight", type=float, default=5.0)
    parser.add_argument("--method", default="sinkhorn", help="sinkhorn, proximal, exact, or a control")
    parser.add_argument("--labels", type=int, help="use this many training images only")
    parser.add_argument("--label-free", action="store_true", help="labels are for the head only, afterwards")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=float, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    set_seed(given.seed)

    data = load_image_dataset(given.dataset)
    image, label = image_columns(data)
    labelled = data["train"]
    if given.labels is not None:
        split = labelled.train_test_split(train_size=given.labels, stratify_by_column=label, seed=given.seed)
        labelled = split["train"]
    student = create_timm_student(
        given.student,
        label_names(labelled, label),
        pretrained_cfg={"input_size": [3, given.image_size, given.image_size], "crop_pct": 1.0},
    )
    processor = TimmWrapperImageProcessor(pretrained_cfg=student.config.pretrained_cfg)
    trainer = OTTransferTrainer(
        model=student,
        teacher_model=given.teacher if given.ot_weight > 0 else None,
        args=OTTransferConfig(
            output_dir=given.output,
            task_weight=0.0 if given.label_free else 1.0,
            ot_weight=given.ot_weight,
            ot_method=given.method,
            layer_pairs="last",
            plan_momentum=0.9,
            num_train_epochs=given.epochs,
            per_device_train_batch_size=given.batch_size,
            learning_rate=given.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            save_strategy="no",
            logging_steps=5,
            seed=given.seed,
        ),
        data_collator=ImageCollator(processor, augmentation="flip", image_column=image, label_column=label),
        train_dataset=data["train"] if given.label_free else labelled,
        eval_dataset=data["test"],
        processing_class=processor,
        compute_metrics=accuracy,
    )
    trainer.train()
    if given.label_free:
        print(trainer.fit_head(labelled))
    print(f"test accuracy {trainer.evaluate()['eval_accuracy']:.3f}")
    trainer.save_model()


if __name__ == "__main__":
    main()
