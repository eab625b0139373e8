"""Recaptioning: new captions from a vision-language model, asked over HTTP or run here, and rules that check captions.

`recaption` and `check_captions` (../stages) are the stages; export learns from `source.caption_source` whose text it
writes.
"""
