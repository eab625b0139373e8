"""`megavlm curate inspect`: one sample's life, from a run or from an export alone."""
