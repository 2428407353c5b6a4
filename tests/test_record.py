"""The record's checksum."""

import random

import crc32c
from twisted.trial.unittest import TestCase

from tests import probe


class ChecksumTests(TestCase):

    def test_short_and_long_as_the_package_has_it(self):
        source = random.Random(5)
        data = source.randbytes(2100)
        for n in range(len(data)):
            seed = source.choice((0, 1, 0xFFFFFFFF, source.getrandbits(32)))
            self.assertEqual(probe.checksum(data[:n], seed), crc32c.crc32c(data[:n], seed), f"{n} bytes from {seed}")

    def test_check_value(self):
        """The catalogued CRC-32C of "123456789" (RFC 3720, appendix B.4, and the usual check string)."""
        self.assertEqual(probe.checksum(b"123456789", 0), 0xE3069283)
        self.assertEqual(probe.checksum(bytes(32), 0), 0x8A9136AA)
