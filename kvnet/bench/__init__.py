"""The load generator behind `kvstore bench`. Nothing of the server imports it, and it imports nothing of the server."""
