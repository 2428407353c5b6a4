class Segment:
    path: bytes
    id: int

def open_count() -> int: ...
