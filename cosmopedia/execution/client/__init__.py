"""The client of the generation servers: HTTP, the endpoints' load, the dispatcher."""
