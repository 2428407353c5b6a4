"""The byte buffer: content, room, and the promise that nothing moves under a memoryview."""

from twisted.trial.unittest import SynchronousTestCase

from kvcore.bytebuf import ByteBuf
from tests import probe


class ByteBufTest(SynchronousTestCase):
    def test_append_and_discard_keep_order(self):
        b = ByteBuf()
        expected = b""
        for i in range(2000):
            piece = bytes([i % 256]) * (i % 7)
            probe.append(b, piece)
            expected += piece
            if i % 3 == 0:
                probe.discard(b, i % 5)
                expected = expected[i % 5:]
        self.assertEqual(bytes(b), expected)
        self.assertEqual(len(b), len(expected))

    def test_discard_of_more_than_there_is_empties(self):
        b = ByteBuf()
        probe.append(b, b"abc")
        probe.discard(b, 10)
        self.assertEqual(bytes(b), b"")

    def test_clear_gives_back_a_large_buffer_and_keeps_a_small_one(self):
        b = ByteBuf()
        probe.append(b, bytes(100_000))
        probe.clear(b, 1000)
        self.assertEqual(probe.room(b), 0)
        probe.append(b, b"x")
        probe.clear(b, 1000)
        self.assertGreater(probe.room(b), 0)

    def test_memoryview_is_read_only_and_pins_the_buffer(self):
        b = ByteBuf()
        probe.append(b, b"abc")
        view = memoryview(b)
        self.assertTrue(view.readonly)
        self.assertEqual(bytes(view), b"abc")
        self.assertRaises(BufferError, probe.append, b, bytes(100_000))
        probe.clear(b, 0)
        self.assertEqual(bytes(view), b"abc")
        view.release()
        probe.append(b, bytes(100_000))
        self.assertEqual(len(b), 100_000)
