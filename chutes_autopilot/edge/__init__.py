"""The front channel: the one ordinary request straight from the bytes, everything else to twisted.web."""
