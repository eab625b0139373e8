"""Writes tokenizers/mini/tokenizer.json: `python -m megavlm.megatron_mm.data.tokenizers.build_mini`.

A byte-level BPE of exactly 512 tokens whose merges come from the word list below, so that the words of the demo's tasks
are one token each. Digits always stand alone: a model that small can only learn to count digit by digit.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from megavlm.platform.demo.rendering import COLOURS, FRAMES, WEAVES
from megavlm.platform.demo.tasks import EXERCISES, QUESTIONS

VOCAB_SIZE = 512
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]  # id 0 is also what stands under visual tokens
TILE_TAGS = [f"<tile_{k}>" for k in range(1, 7)] + ["<tile_global_thumbnail>"]

# Most important first: a line earlier in the list is repeated more often and gets its merges earlier.
SENTENCES = """\
user assistant system
the is are of in and to a it on with what which how many where there yes no answer question
image picture photograph colour shape size position corner small large bright dark
What is in this picture? Describe the picture. How many are there? Where is it? Which letter is in the corner?
one two three four five six seven eight nine ten zero left right top bottom middle
plus minus times equals sum add more less than before after first last next count repeat
"""
# An arithmetic line teaches no merge of digits (they are split first), but " + " and " =" become tokens.
ARITHMETIC = "What is 3 + 4? 3 + 4 = 7 What is 9 - 5? 9 - 5 = 4 What is 2 * 3? 2 * 3 = 6"


def corpus() -> list[str]:
    """The training text: the lines, then every word by itself, as an answer stands."""
    lines = demo_lines() + SENTENCES.strip().splitlines()
    weighted = [line for rank, line in enumerate(lines) for _ in range(len(lines) - rank)]
    words = [word for line in weighted for word in line.split()]
    return weighted + words + [ARITHMETIC] * 10


def demo_lines() -> list[str]:
    """The demo's questions and answers, a word each where the model has to say or find it."""
    questions = [question for question, _ in QUESTIONS.values()] + [verb for verb, _ in EXERCISES.values()]
    return questions + [word for words in (COLOURS, FRAMES, WEAVES) for word in words]


def build() -> Tokenizer:
    """Train the tokenizer; the same on every machine."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(TILE_TAGS),
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    # Tags are ordinary text in NVLM, no special tokens; one token each only because the model is that small.
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TILE_TAGS])
    return tokenizer


def main() -> None:
    """Write the file beside this script."""
    path = Path(__file__).parent / "mini" / "tokenizer.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(build().to_str(pretty=True) + "\n")


if __name__ == "__main__":
    main()
