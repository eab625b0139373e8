"""What a recipe will need on hardware that nobody here has: memory, time and layout, by formulas. Loads no torch.

recipe, stage -> Load (what a global batch holds) -> Pieces (costs of its parts) -> memory, timing -> Estimate
search: many layouts, the same way; refusals say why one cannot be
"""
