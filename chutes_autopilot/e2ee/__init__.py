"""End-to-end encryption on the Chutes route: bytes in, bytes out, no sockets."""
