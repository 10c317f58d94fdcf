"""One request carried out: attempts before the commit boundary, the byte pipe after it."""
