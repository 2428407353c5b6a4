"""The operations log: all records of a data directory in the order of their versions, which is that of time.

Each segment but a compacted one is in this order by itself; a compacted one is a few stretches that are. They are merged,
and a stretch is read only when the merge has come to its lowest version. A copy that a compaction made of a record that
is still there is passed over.
"""

import heapq
from operator import attrgetter

from kvcore.operations import Reader
from kvcore.survey import Survey


class History:
    """The operations of the data directory `path` (str, bytes or path-like). Raises StorageError when it cannot be read.

    `damage` (list of kvcore.survey.Damage) grows while they are read: where operations may be missing.
    """

    def __init__(self, path):
        self._survey = Survey(path)
        self._tails = {}  # segment id: Reader, of those that new operations may come from
        self.damage = self._survey.damage

    def past(self, since=0):
        """Iterate over the Operations (kvcore.operations) that are there, from the version `since` (int) on."""
        stretches = []  # (lowest version, is a copy, Reader)
        for segment in self._survey.segments():
            if segment.sealed and segment.max_version < since:
                self._survey.forget(segment)
            elif segment.compacted:
                runs = Reader(self._survey, segment, []).runs()
                stretches += [(low, True, self._reader(segment, start, end)) for low, start, end in runs]
                self._survey.forget(segment)
            else:
                reader = self._tails[segment.id] = self._reader(segment)
                stretches.append((segment.min_version if segment.sealed else 0, False, reader))
        for operation in self._merged(stretches):
            if operation.version >= since:
                yield operation

    def new(self):
        """Iterate over the Operations that have come since past(), or this, was read to the end."""
        self._survey.refresh()
        for segment in sorted(self._survey.segments(), key=attrgetter("id")):
            if segment.compacted:
                # Copies of what was told already.
                self._survey.forget(segment)
            elif segment.id not in self._tails:
                self._tails[segment.id] = self._reader(segment)
        last = self._last()
        for number, reader in sorted(self._tails.items()):
            ended = reader.segment.sealed
            yield from reader.read(number == last)
            if ended:
                self._survey.forget(reader.segment)
                del self._tails[number]

    def _reader(self, segment, *stretch):
        return Reader(self._survey, segment, self.damage, *stretch)

    def _last(self):
        """Id of the segment that is being written (int): what is not good at its end may be on its way."""
        return max((number for number, reader in self._tails.items() if not reader.is_empty()), default=0)

    def _merged(self, stretches):
        last = self._last()
        waiting = sorted(stretches, key=lambda stretch: stretch[:2], reverse=True)
        heap = []  # (version, is a copy, number of the stretch, operation, iterator)
        version = None
        while waiting or heap:
            while waiting and (not heap or waiting[-1][0] <= heap[0][0]):
                _, copy, reader = waiting.pop()
                _push(heap, copy, len(waiting), reader.read(reader.segment.id == last))
            if not heap:
                return
            _, copy, number, operation, operations = heapq.heappop(heap)
            _push(heap, copy, number, operations)
            if operation.version != version:
                yield operation
            version = operation.version


def _push(heap, copy, number, operations):
    """Put the next of `operations` (iterator) on the heap, if there is one."""
    operation = next(operations, None)
    if operation is not None:
        heapq.heappush(heap, (operation.version, copy, number, operation, operations))
