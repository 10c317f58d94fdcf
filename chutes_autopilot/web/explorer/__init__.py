"""The explorer over HTTP: the documented endpoints, the API of our own, and the page."""
