"""`python serve_tiny.py FOLDER PORT`: `transformers serve` on a tiny LLaVA with random weights, made if need be.

Its words are nonsense, the same for the same image and prompt; everything else about the server is the real thing.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.modules["torchvision"] = None  # type: ignore[assignment]  # linked against CUDA on PyPI; without it, Pillow decodes

WORDS = "a the red blue small large photo image of shows with dog cat house tree sky and on in is are there water ."
TEMPLATE = (
    "{% for m in messages %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<image> {% else %}{{ c.text }} {% endif %}{% endfor %}{% endfor %}"
)


def make(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = [*special.values(), "<image>", *WORDS.split()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens={"image_token": "<image>"}, padding_side="left", **special
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**size, image_size=28, patch_size=14, projection_dim=32),
        text_config=LlamaConfig(
            **size,
            vocab_size=len(words),
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            initializer_range=0.5,  # with the usual 0.02 every image gets the same words
        ),
        image_token_index=words.index("<image>"),
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    folder, port = sys.argv[1:]
    if not (Path(folder) / "config.json").exists():
        make(Path(folder))
    from transformers.cli.transformers import main

    sys.argv = ["transformers", "serve", folder, "--port", port, "--host", "127.0.0.1", "--device", "cpu"]
    sys.exit(main())
