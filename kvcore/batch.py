"""Atomic batches of a store used as a library."""


class Batch:
    """Operations that are done together when the `with` block ends; nothing is done when it ends with an error."""

    def __init__(self, store):
        self._store = store
        self._operations = []

    def put(self, key, value, ttl=None):
        """As Store.put, at the end."""
        self._operations.append((key, value, ttl))

    def delete(self, key):
        """As Store.delete, at the end."""
        self._operations.append((key, None, None))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        operations, self._operations = self._operations, []
        if kind is None:
            self._store.apply(operations)
