"""Serving: what a request is, the completion store, the TGI client, the dispatcher, the fleet of servers."""
