"""Chat templates: messages -> text, special tokens and images. A new one is one file and one line here."""

from megavlm.platform.registry import Registry

TEMPLATES = Registry("template", {
    "chatml": "megavlm.megatron_mm.data.templates.chatml:ChatML",
    "vicuna_v1": "megavlm.megatron_mm.data.templates.vicuna_v1:VicunaV1",
    "llama3": "megavlm.megatron_mm.data.templates.llama3:Llama3",
    "yi": "megavlm.megatron_mm.data.templates.yi:Yi",
    "nvlm_pretrain": "megavlm.megatron_mm.data.templates.nvlm_pretrain:NVLMPretrain",
    "plain": "megavlm.megatron_mm.data.templates.plain:Plain",
})  # fmt: skip
