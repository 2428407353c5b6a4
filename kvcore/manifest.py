"""Text of the MANIFEST and back. docs/format.md ("MANIFEST"); reading and writing the file is done by the callers."""

import json

from crc32c import crc32c

from kvcore.errors import CorruptionError, StorageError

FORMAT = 1
NAME = "MANIFEST"

_SEALED_FIELDS = ("bytes", "records", "min_version", "max_version", "buried")


def encode(store_id, hash_secret, next_id, segments):
    """Return the manifest as bytes.

    store_id, hash_secret: 16 bytes each. next_id: int. segments: list of dict, ascending by "id", each with "state" "open",
    or "sealed" and the ints "bytes", "records", "min_version", "max_version", "buried".
    """
    head = {"format": FORMAT, "store_id": store_id.hex(), "hash_secret": hash_secret.hex(), "next_id": next_id}
    text = "".join(json.dumps(line) + "\n" for line in [head, *segments]).encode()
    return text + json.dumps({"crc32c": f"{crc32c(text):08x}"}).encode() + b"\n"


def decode(content, path):
    """Return (store_id, hash_secret, next_id, segments) as encode() takes them.

    content: bytes of the file; path: str, for messages. Raises CorruptionError, and StorageError for another format.
    """
    damaged = CorruptionError(
        f"{path} is damaged; restore it from a backup, or salvage what is left into a new directory")
    body, newline, last = content.removesuffix(b"\n").rpartition(b"\n")
    try:
        # Nothing but the short last line is parsed before the checksum is known to hold.
        if len(last) > 100 or crc32c(body + newline) != int(json.loads(last)["crc32c"], 16):
            raise damaged
        lines = [json.loads(line) for line in body.split(b"\n")]
        head = lines[0]
        if head["format"] != FORMAT:
            raise StorageError(
                f"{path} is of format {head['format']}; this version reads format {FORMAT}; nothing was changed")
        segments = lines[1:]
        for segment in segments:
            fields = () if segment["state"] == "open" else _SEALED_FIELDS
            if not all(isinstance(segment[name], int) for name in ("id", *fields)):
                raise damaged
        return bytes.fromhex(head["store_id"]), bytes.fromhex(head["hash_secret"]), head["next_id"], segments
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise damaged from error
