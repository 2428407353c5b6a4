"""What is due of the work in the background: which segments to compact, which to sort.

Of each question the cheap half is answered here, from the counts of the segments; how it is done stands in compaction.pxd
and order.pxd. Thread: the owner's.
"""
from kvcore.compaction cimport Compaction
from kvcore.log cimport Log
from kvcore.segment cimport Segment


# The sealed segments worth compacting, or an empty list. thorough: when there is nothing else to do, a twentieth of dead
# bytes is worth it; else three tenths.
cdef list due_sources(Compaction c, Log log, bint thorough)

# Do sealed segments hold so much more that can be reclaimed than that is alive, that it matters more than clients who are
# held up, checkpoints and orders?
cdef bint due_urgently(Log log) noexcept
