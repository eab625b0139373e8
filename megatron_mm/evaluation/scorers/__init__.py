"""What an answer to a picture benchmark is worth. The library's scorers where they equal the official ones, else ours.

A scorer takes an `Answered` and gives a value in [0, 1]. A new one is one file and one line in this table.
"""

from megavlm.platform.registry import Registry

SCORERS = Registry("scorer", {
    "number": "megavlm.megatron_mm.evaluation.scorers.library:number",
    "aggregated": "megavlm.megatron_mm.evaluation.scorers.library:aggregated",
    "mmbench": "megavlm.megatron_mm.evaluation.scorers.library:mmbench",
    "vqa": "megavlm.megatron_mm.evaluation.scorers.vqa:score",
    "ocrbench": "megavlm.megatron_mm.evaluation.scorers.ocrbench:score",
    "mathvista": "megavlm.megatron_mm.evaluation.scorers.mathvista:score",
})  # fmt: skip
OURS = frozenset({"vqa", "ocrbench", "mathvista"})  # where lmms-eval's differs from the official one, or asks a GPT
