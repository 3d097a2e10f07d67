"""A trained network for others: over HTTP (``http``), in a browser (``page``)."""
