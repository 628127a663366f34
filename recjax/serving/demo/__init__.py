"""A demonstration shop on top of the service, which runs without it: `recjax serve --no-shop`."""
