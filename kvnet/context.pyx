cdef class Context:
    """The view a command has of its connection. Made by kvnet.session only."""
