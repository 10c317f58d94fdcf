"""The bytes of HTTP and JSON as this gateway reads and writes them; pure, no reactor."""
