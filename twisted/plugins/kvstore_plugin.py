"""Tells twistd where the `kvstore` service is."""

from twisted.application.service import ServiceMaker

kvstore = ServiceMaker("kvstore", "kvnet.tap", "a durable key-value server", "kvstore")
