"""The layouts of public text sets, each as it was published. A new one is one file here and one line in this table."""

from megavlm.platform.registry import Registry

FORMATS = Registry("text format", {
    "alpaca_gpt4": "megavlm.data_curation.text.formats.alpaca_gpt4:convert",
    "evol_instruct": "megavlm.data_curation.text.formats.evol_instruct:convert",
    "glaive": "megavlm.data_curation.text.formats.glaive:convert",
    "gpteacher": "megavlm.data_curation.text.formats.gpteacher:convert",
    "magicoder": "megavlm.data_curation.text.formats.magicoder:convert",
    "math_instruct": "megavlm.data_curation.text.formats.math_instruct:convert",
    "messages": "megavlm.data_curation.text.formats.messages:convert",
    "metamath": "megavlm.data_curation.text.formats.metamath:convert",
    "orca_math": "megavlm.data_curation.text.formats.orca_math:convert",
    "sharegpt": "megavlm.data_curation.text.formats.sharegpt:convert",
    "slim_orca": "megavlm.data_curation.text.formats.slim_orca:convert",
    "ultra_interact": "megavlm.data_curation.text.formats.ultra_interact:convert",
    "wizard_coder": "megavlm.data_curation.text.formats.wizard_coder:convert",
})  # fmt: skip
