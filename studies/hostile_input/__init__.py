"""What a server does with images and requests that were made to harm it."""
