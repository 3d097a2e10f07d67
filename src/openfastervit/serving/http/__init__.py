"""``fastervit serve``: a trained network behind HTTP, on LitServe.

One process takes requests (``server``, ``app``, ``guard``, ``listener``) and decodes images in threads. Others,
the workers (``worker``), have a model each and predict batches. LitServe starts the workers and brings them what waits.
"""
