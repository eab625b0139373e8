"""A vision-language model of random weights, made on the spot: for recipes that show the way and say nothing."""

from __future__ import annotations

from typing import Any

NAME = "random-weights"  # as `model` of a recaption stage in process
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
WORDS = "a the red blue small large photo image of shows with dog cat house tree sky and on in is are there water ."
TEMPLATE = (
    "{% for m in messages %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<image> {% else %}{{ c.text }} {% endif %}{% endfor %}{% endfor %}"
)
SIDE = 28  # pixels


def random_captioner() -> tuple[Any, Any]:
    """(model, processor): a LLaVA of 60,832 parameters and 29 words, the same in every process.

    What it says is nonsense, the same for the same image and prompt; all around it is the real thing.
    """
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    words = _words()
    size: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = LlamaConfig(
        **size,
        vocab_size=len(words),
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=words.index("<s>"),
        eos_token_id=words.index("</s>"),
        pad_token_id=words.index("<pad>"),
        initializer_range=0.5,  # with the usual 0.02 every image gets the same words
    )
    vision = CLIPVisionConfig(**size, image_size=SIDE, patch_size=SIDE // 2, projection_dim=32)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=words.index("<image>"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = LlavaForConditionalGeneration(config)
    return model, _processor(words)


def _words() -> list[str]:
    return [*SPECIAL.values(), "<image>", *WORDS.split()]


def _processor(words: list[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens={"image_token": "<image>"}, padding_side="left", **SPECIAL
    )
    return LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        fast,
        patch_size=SIDE // 2,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
