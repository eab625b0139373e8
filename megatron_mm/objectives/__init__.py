"""Objectives: what the training loss is made of. A new one is one file here and one line in this table."""

from megavlm.platform.registry import Registry

OBJECTIVES = Registry("objective", {
    "next_token": "megavlm.megatron_mm.objectives.next_token:NextToken",
    "patch_aligning": "megavlm.megatron_mm.objectives.patch_aligning:PatchAligning",
})  # fmt: skip
