"""The web page of ``fastervit app``: an image in, what networks make of it out, and what they cost beside others."""
