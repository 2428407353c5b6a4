"""A thread that syncs without the GIL, and tells the reactor through a descriptor.

    run(job, done)  --semaphore-->  fdatasync  --eventfd-->  doRead: done()

A thread of Python would have to take the GIL back after each sync, from a reactor that lets go of it for a moment only: that
takes longer than the sync. docs/design.md ("Replies and durability").
"""
import threading

from libc.errno cimport errno
from libc.stdint cimport uint64_t
from libc.string cimport strerror
from posix.unistd cimport close

from kvcore.store cimport store_run_sync

from twisted.logger import Logger

log = Logger()


cdef extern from "<sys/eventfd.h>" nogil:
    enum: EFD_CLOEXEC
    enum: EFD_NONBLOCK
    int eventfd(unsigned int value, int flags)
    int eventfd_read(int fd, uint64_t* value)
    int eventfd_write(int fd, uint64_t value)


cdef extern from "<semaphore.h>" nogil:
    ctypedef struct sem_t:
        pass
    int sem_init(sem_t* semaphore, int shared, unsigned int value)
    int sem_destroy(sem_t* semaphore)
    int sem_post(sem_t* semaphore)
    int sem_wait(sem_t* semaphore)


cdef class Syncer:
    """Runs the sync jobs of a kvcore.Store, one at a time. reactor: a Hub, or an IReactorFDSet. Raises OSError."""

    cdef object reactor
    cdef object thread              # None: not begun, or stopped
    cdef object job                 # under way, or None
    cdef object done
    cdef sem_t wanted
    cdef int ended                  # an eventfd

    def __cinit__(self, reactor):
        self.ended = -1
        self.reactor = reactor
        sem_init(&self.wanted, 0, 0)
        # Now: when clients have taken the last descriptor it is too late.
        self.ended = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.ended < 0:
            raise OSError(errno, strerror(errno).decode())

    def __dealloc__(self):
        sem_destroy(&self.wanted)
        if self.ended >= 0:
            close(self.ended)

    def run(self, job, done):
        """Have a job of Store.sync_job() run; then, in the thread of the reactor, done() is called. Nothing else may run."""
        if self.thread is None:
            self.start()
        self.job = job
        self.done = done
        sem_post(&self.wanted)

    def stop(self):
        """End the thread. Nothing may run."""
        thread, self.thread = self.thread, None
        if thread is not None:
            sem_post(&self.wanted)
            thread.join()
            self.reactor.removeReader(self)

    def start(self):
        """Begin the thread. Called by run()."""
        self.reactor.addReader(self)
        self.thread = threading.Thread(target=self.work, name="sync", daemon=True)
        self.thread.start()

    def work(self):
        """What the thread does."""
        cdef int got
        with nogil:
            while True:
                got = sem_wait(&self.wanted)
                if got != 0:
                    continue            # interrupted
                if <void*>self.job == <void*>None:
                    break
                store_run_sync(<void*>self.job)
                eventfd_write(self.ended, 1)

    def fileno(self):
        """As in IFileDescriptor."""
        return self.ended

    def logPrefix(self):
        """As in ILoggingContext."""
        return "kvstore"

    def connectionLost(self, reason):
        """As in IFileDescriptor: the reactor gives up."""

    def doRead(self):
        """The sync is over."""
        cdef uint64_t count
        if eventfd_read(self.ended, &count) == 0:
            done, self.job, self.done = self.done, None, None
            try:
                done()
            except Exception:
                # The reactor would watch this descriptor no more.
                log.failure("the result of a sync could not be handled")
