"""Images a second of a cluster's parts and of the whole, with one worker and with two."""
