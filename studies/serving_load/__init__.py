"""How ``fastervit serve`` holds under load and faults, on loopback."""
