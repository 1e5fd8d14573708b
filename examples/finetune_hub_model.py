"""Fine-tune a hub model on a new task, its representation held near the one it came with.

    python -m examples.carriers efficientnet-lite0 models/lite0
    python -m examples.carriers photo-cutouts data/cutouts
    python examples/finetune_hub_model.py --model models/lite0 --dataset data/cutouts --output students/finetuned

Any hub ids go in their places: --model google/vit-base-patch16-224 --dataset beans. `--ot-weight 0` is plain
fine-tuning, for comparison.
"""

from __future__ import annotations

import argparse

from transformers import AutoImageProcessor, set_seed

from hf_reprot import ImageCollator, OTTransferConfig, OTTransferTrainer, load_image_dataset, load_student
from hf_reprot.data.dataset_columns import image_columns
from hf_reprot.data.labels import label_names
from hf_reprot.utils.running import accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="hub id or folder: the student's start, and the teacher")
    parser.add_argument("--dataset", required=True, help='hub id, folder, or "digits"')
    parser.add_argument("--output", default="students/finetuned")
    parser.add_argument("--ot-weight", type=float, default=1.0)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--push-to-hub", action="store_true")
    given = parser.parse_args()
    set_seed(given.seed)

    data = load_image_dataset(given.dataset)
    image, label = image_columns(data)
    names = label_names(data["train"], label)

    student = load_student(given.model, names)  # its weights, and a new head for the new task
    processor = AutoImageProcessor.from_pretrained(given.model)
    trainer = OTTransferTrainer(
        model=student,
        teacher_model=given.model if given.ot_weight > 0 else None,
        args=OTTransferConfig(
            output_dir=given.output,
            ot_weight=given.ot_weight,
            layer_pairs="last",
            plan_momentum=0.9,  # the plan rests on many batches, not on one
            num_train_epochs=given.epochs,
            per_device_train_batch_size=given.batch_size,
            learning_rate=given.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            logging_steps=5,
            seed=given.seed,
            push_to_hub=given.push_to_hub,
        ),
        data_collator=ImageCollator(processor, augmentation="flip", image_column=image, label_column=label),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=processor,
        compute_metrics=accuracy,
    )
    trainer.train()
    print(f"test accuracy {trainer.evaluate()['eval_accuracy']:.3f}")
    trainer.save_model()
    if given.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
