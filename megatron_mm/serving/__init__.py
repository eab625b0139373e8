"""`megavlm serve`: a trained stage behind OpenAI's HTTP API.

    HTTP (app) -> asked -> prompts -> Desk -> Engine (every rank) -> events -> replies -> HTTP

HTTP lives in a thread of rank 0, the model in the main thread of every rank.
"""
