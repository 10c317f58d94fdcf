"""What an operator sees: metrics, log events, the record of one request."""
